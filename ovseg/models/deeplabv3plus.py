"""The baseline's DeepLabV3+ on Keras' ResNet-50."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ovseg.models.checks import check_at_least
from ovseg.models.layers import (
    InputScale,
    PortedModule,
    batch_norm,
    crop_to_image,
    init_glorot,
    init_he_normal_,
    keras_layers_of,
    pad_to_stride,
    zero_bias,
)

RESNET_EPSILON = 1.001e-5  # of batch normalisation, as in Keras' ResNet-50
# Stacks of the encoder: filters, whole blocks, stride of the first block.
STACKS = {"conv2": (64, 3, 1), "conv3": (128, 4, 2), "conv4": (256, 5, 2)}
SKIP_BLOCK = "conv2_block3"
LAST_BLOCK = "conv4_block6"
WIDTH = 256  # channels of the decoder
SKIP_WIDTH = 48  # channels of the reduced skip connection
DILATIONS = (6, 12, 18)


def _resnet_norm(channels: int) -> nn.BatchNorm2d:
    return batch_norm(channels, RESNET_EPSILON)


def _build_squeeze(in_channels: int, filters: int, stride: int) -> nn.Sequential:
    """The first two convolutions of a residual block, 1 x 1 and 3 x 3."""
    return nn.Sequential(
        nn.Conv2d(in_channels, filters, 1, stride),
        _resnet_norm(filters),
        nn.ReLU(inplace=True),
        nn.Conv2d(filters, filters, 3, padding=1),
        _resnet_norm(filters),
        nn.ReLU(inplace=True),
    )


def _build_projection(in_channels: int, out_channels: int, stride: int = 1) -> nn.Sequential:
    """A 1 x 1 convolution without activation."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 1, stride), _resnet_norm(out_channels)
    )


class ResidualBlock(nn.Module):
    """A bottleneck block of ResNet v1.

    The shortcut is a convolution where the number of channels changes.
    """

    def __init__(self, in_channels: int, filters: int, stride: int):
        super().__init__()
        out_channels = 4 * filters
        self.squeeze = _build_squeeze(in_channels, filters, stride)
        self.expand = _build_projection(filters, out_channels)
        self.shortcut: nn.Module = nn.Identity()
        if in_channels != out_channels:
            self.shortcut = _build_projection(in_channels, out_channels, stride)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """The narrow map after the 3 x 3 convolution (Keras' `..._2_relu`), and the output."""
        narrow = self.squeeze(features)
        return narrow, F.relu(self.shortcut(features) + self.expand(narrow))


class ResNet50Encoder(PortedModule):
    """Keras' ResNet-50 up to `conv4_block6_2_relu`, the last layer that DeepLabV3+ uses.

    It is not torchvision's or timm's, whose numbers differ: Keras' convolutions have biases, stacks
    have their stride in the first 1 x 1 convolution (theirs in the 3 x 3), and batch normalisation
    adds 1.001e-5 (theirs 1e-5).

    Source: K. He et al., Deep residual learning, CVPR 2016; keras.applications.ResNet50.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, padding=3)
        self.norm1 = _resnet_norm(64)
        self.pool = nn.MaxPool2d(3, 2, padding=1)
        self.blocks = nn.ModuleDict()
        channels = 64
        for stack, (filters, count, stride) in STACKS.items():
            for number in range(1, count + 1):
                block = ResidualBlock(channels, filters, stride if number == 1 else 1)
                self.blocks[f"{stack}_block{number}"] = block
                channels = 4 * filters
        self.last = _build_squeeze(channels, filters, 1)
        init_glorot(self)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Maps of 64 channels at 1/4 and of 256 channels at 1/16 of the image's size."""
        features = self.pool(F.relu(self.norm1(self.conv1(image))))
        for name, block in self.blocks.items():
            narrow, features = block(features)
            if name == SKIP_BLOCK:
                skip = narrow
        return skip, self.last(features)

    def keras_layers(self) -> Iterator[tuple[str, nn.Module]]:
        yield "conv1_conv", self.conv1
        yield "conv1_bn", self.norm1
        for name, block in self.blocks.items():
            assert isinstance(block, ResidualBlock)
            yield from _number_layers(name, 1, block.squeeze)
            yield from _number_layers(name, 3, block.expand)
            yield from _number_layers(name, 0, block.shortcut)
        yield from _number_layers(LAST_BLOCK, 1, self.last)


def _number_layers(block: str, number: int, layers: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Convolutions and normalisations of one part of a block, numbered from `number`."""
    for kind, suffix in ((nn.Conv2d, "conv"), (nn.BatchNorm2d, "bn")):
        found = [module for module in layers.modules() if isinstance(module, kind)]
        for index, module in enumerate(found, start=number):
            yield f"{block}_{index}_{suffix}", module


class ConvNormRelu(PortedModule):
    """A "same" He-normal convolution, batch normalisation, ReLU.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel: odd kernel size.
        dilation: distance of the kernel's elements in pixels.
        bias: whether the convolution has a bias.
        relu_first: another ReLU between convolution and normalisation.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        dilation: int = 1,
        bias: bool = False,
        relu_first: bool = False,
    ):
        super().__init__()
        padding = dilation * (kernel - 1) // 2
        self.conv = nn.Conv2d(
            in_channels, out_channels, kernel, padding=padding, dilation=dilation, bias=bias
        )
        self.norm = batch_norm(out_channels)
        self.relu_first = relu_first
        init_he_normal_(self.conv.weight)
        zero_bias(self.conv)

    def forward(self, features: Tensor) -> Tensor:
        features = self.conv(features)
        if self.relu_first:
            features = F.relu(features)
        return F.relu(self.norm(features))

    def keras_layers(self) -> Iterator[tuple[str, nn.Module]]:
        yield "conv2d", self.conv
        yield "batch_normalization", self.norm


class AtrousPyramid(PortedModule):
    """Atrous spatial pyramid pooling.

    The mean of the whole map and convolutions of growing dilation are concatenated and fused.
    """

    def __init__(self, in_channels: int):
        super().__init__()
        self.pool = ConvNormRelu(in_channels, WIDTH, 1, bias=True)
        self.branches = nn.ModuleList([ConvNormRelu(in_channels, WIDTH, 1)])
        for dilation in DILATIONS:
            self.branches.append(ConvNormRelu(in_channels, WIDTH, 3, dilation))
        self.fuse = ConvNormRelu((2 + len(DILATIONS)) * WIDTH, WIDTH, 1)

    def forward(self, features: Tensor) -> Tensor:
        mean = features.mean(dim=(2, 3), keepdim=True)
        if self.training and len(mean) == 1:
            # Batch normalisation refuses a single value. Two equal ones give Keras' result, beta.
            pooled = self.pool(mean.expand(2, -1, -1, -1))[:1]
        else:
            # No slice by the batch size here: an ONNX export would keep that batch size.
            pooled = self.pool(mean)
        maps = [pooled.expand(-1, -1, *features.shape[2:])]
        for branch in self.branches:
            maps.append(branch(features))
        return self.fuse(torch.cat(maps, dim=1))

    def keras_layers(self) -> Iterator[tuple[str, nn.Module]]:
        yield from keras_layers_of(self.pool, *self.branches, self.fuse)


class DeepLabV3Plus(PortedModule):
    """DeepLabV3+ on ResNet-50 (TensorflowDeepLabV3Plus of the baseline).

    It differs from the paper in what it takes from the encoder: the narrow maps inside
    `conv2_block3` and `conv4_block6` instead of the blocks' outputs. The baseline starts from
    ImageNet's weights, this class from random ones. Nothing inside divides by 255.

    Args:
        classes: output channels.
        input_scale: factor on the pixels: 1 feeds 0..255 as the baseline does.

    Raises:
        InputError: fewer than one class.

    Source: L.-C. Chen et al., Encoder-decoder with atrous separable convolution, ECCV 2018.
    """

    stride = 16

    def __init__(self, classes: int = 1, input_scale: float = 1.0):
        super().__init__()
        check_at_least("deeplabv3plus", 1, classes=classes)
        self.scale = InputScale(input_scale)
        self.encoder = ResNet50Encoder()
        self.pyramid = AtrousPyramid(256)
        self.reduce_skip = ConvNormRelu(64, SKIP_WIDTH, 1)
        self.decoder = nn.Sequential(
            ConvNormRelu(WIDTH + SKIP_WIDTH, WIDTH, 3, relu_first=True),
            ConvNormRelu(WIDTH, WIDTH, 3, relu_first=True),
        )
        self.head = nn.Conv2d(WIDTH, classes, 1)
        init_glorot(self.head)

    def forward(self, image: Tensor) -> Tensor:
        """Predict logits.

        Args:
            image: plain pixels, uint8 or float (N, 3, H, W), 0..255 RGB, any size.

        Returns:
            (N, classes, H, W).
        """
        skip, features = self.encoder(pad_to_stride(self.scale(image), self.stride))
        features = _upsample(self.pyramid(features))
        features = self.decoder(torch.cat([features, self.reduce_skip(skip)], dim=1))
        return crop_to_image(self.head(_upsample(features)), image)

    def keras_layers(self) -> Iterator[tuple[str, nn.Module]]:
        yield from keras_layers_of(self.encoder, self.pyramid, self.reduce_skip, *self.decoder)
        yield "conv2d", self.head


def _upsample(features: Tensor) -> Tensor:
    """Four times the size, bilinear between pixel centres as Keras does."""
    return F.interpolate(features, scale_factor=4, mode="bilinear", align_corners=False)
