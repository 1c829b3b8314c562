"""The baseline's DeepLabV3+ on Keras' ResNet-50."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ovseg.core.errors import InputError
from ovseg.models.layers import InputScale, init_he_normal_, pad_to_stride
from ovseg.models.unet import BATCH_NORM

RESNET_NORM = {**BATCH_NORM, "eps": 1.001e-5}
STACKS = {
    "conv2": (64, 3, 1),
    "conv3": (128, 4, 2),
    "conv4": (256, 5, 2),
}  # filters, whole blocks, stride of the first
SKIP_BLOCK, LAST_BLOCK = "conv2_block3", "conv4_block6"
WIDTH, SKIP_WIDTH = 256, 48
DILATIONS = (6, 12, 18)


def _squeeze(in_channels: int, filters: int, stride: int) -> nn.Sequential:
    """The first two convolutions of a residual block, 1 x 1 and 3 x 3."""
    return nn.Sequential(
        nn.Conv2d(in_channels, filters, 1, stride),
        nn.BatchNorm2d(filters, **RESNET_NORM),
        nn.ReLU(inplace=True),
        nn.Conv2d(filters, filters, 3, padding=1),
        nn.BatchNorm2d(filters, **RESNET_NORM),
        nn.ReLU(inplace=True),
    )


def _project(in_channels: int, out_channels: int, stride: int = 1) -> nn.Sequential:
    """A 1 x 1 convolution without activation."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 1, stride), nn.BatchNorm2d(out_channels, **RESNET_NORM)
    )


class ResidualBlock(nn.Module):
    """A bottleneck block of ResNet v1; the shortcut is a convolution where the number of channels changes."""

    def __init__(self, in_channels: int, filters: int, stride: int):
        super().__init__()
        self.squeeze = _squeeze(in_channels, filters, stride)
        self.expand = _project(filters, 4 * filters)
        self.shortcut = (
            _project(in_channels, 4 * filters, stride)
            if in_channels != 4 * filters
            else nn.Identity()
        )

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """The narrow map after the 3 x 3 convolution (Keras' `..._2_relu`), and the block's output."""
        narrow = self.squeeze(features)
        return narrow, F.relu(self.shortcut(features) + self.expand(narrow))


class ResNet50Encoder(nn.Module):
    """Keras' ResNet-50 up to `conv4_block6_2_relu`, where DeepLabV3+ leaves it.

    Not torchvision's or timm's, whose numbers differ: Keras' convolutions have biases, stacks take their stride in the
    first 1 x 1 convolution (theirs in the 3 x 3), and batch normalisation adds 1.001e-5 (theirs 1e-5).

    Source: K. He et al., Deep residual learning, CVPR 2016; keras.applications.ResNet50.
    """

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, padding=3)
        self.norm1 = nn.BatchNorm2d(64, **RESNET_NORM)
        self.pool = nn.MaxPool2d(3, 2, padding=1)
        self.blocks, channels = nn.ModuleDict(), 64
        for stack, (filters, count, stride) in STACKS.items():
            for number in range(1, count + 1):
                block = ResidualBlock(channels, filters, stride if number == 1 else 1)
                self.blocks[f"{stack}_block{number}"], channels = block, 4 * filters
        self.last = _squeeze(channels, filters, 1)
        for conv in self.modules():
            if isinstance(conv, nn.Conv2d):
                nn.init.xavier_uniform_(conv.weight)
                nn.init.zeros_(conv.bias)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Maps of 64 channels at 1/4 and of 256 channels at 1/16 of the image's size."""
        features = self.pool(F.relu(self.norm1(self.conv1(image))))
        for name, block in self.blocks.items():
            narrow, features = block(features)
            if name == SKIP_BLOCK:
                skip = narrow
        return skip, self.last(features)

    def keras_layers(self) -> Iterator[tuple[str, nn.Module]]:
        """See `ovseg.baseline.keras_weights`."""
        yield from (("conv1_conv", self.conv1), ("conv1_bn", self.norm1))
        for name, block in self.blocks.items():
            yield from _named(name, 1, block.squeeze)
            yield from _named(name, 3, block.expand)
            yield from _named(name, 0, block.shortcut)
        yield from _named(LAST_BLOCK, 1, self.last)


def _named(block: str, number: int, layers: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Convolutions and normalisations of one part of a block, numbered on from `number`."""
    for kind, suffix in ((nn.Conv2d, "conv"), (nn.BatchNorm2d, "bn")):
        found = [module for module in layers.modules() if isinstance(module, kind)]
        yield from (
            (f"{block}_{i}_{suffix}", module) for i, module in enumerate(found, start=number)
        )


class ConvNormRelu(nn.Module):
    """A "same" He-normal convolution, batch normalisation, ReLU.

    Args:
        in_channels: of the input.
        out_channels: of the output.
        kernel: odd kernel size.
        dilation: of the convolution.
        bias: of the convolution.
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
        self.norm = nn.BatchNorm2d(out_channels, **BATCH_NORM)
        self.relu_first = relu_first
        init_he_normal_(self.conv.weight)
        if bias:
            nn.init.zeros_(self.conv.bias)

    def forward(self, features: Tensor) -> Tensor:
        features = self.conv(features)
        return F.relu(self.norm(F.relu(features) if self.relu_first else features))

    def keras_layers(self) -> Iterator[tuple[str, nn.Module]]:
        """See `ovseg.baseline.keras_weights`."""
        yield from (("conv2d", self.conv), ("batch_normalization", self.norm))


class AtrousPyramid(nn.Module):
    """Atrous spatial pyramid pooling: the mean of the whole map and four convolutions of growing dilation, fused."""

    def __init__(self, in_channels: int):
        super().__init__()
        self.pool = ConvNormRelu(in_channels, WIDTH, 1, bias=True)
        self.branches = nn.ModuleList([ConvNormRelu(in_channels, WIDTH, 1)])
        self.branches.extend(
            ConvNormRelu(in_channels, WIDTH, 3, dilation) for dilation in DILATIONS
        )
        self.fuse = ConvNormRelu((2 + len(DILATIONS)) * WIDTH, WIDTH, 1)

    def forward(self, features: Tensor) -> Tensor:
        mean = features.mean(dim=(2, 3), keepdim=True)
        if self.training and len(mean) == 1:
            # Batch normalisation refuses a single value; two equal ones give Keras' result, its beta.
            pooled = self.pool(mean.expand(2, -1, -1, -1))[:1]
        else:
            # No slice by the batch size here: an ONNX export would fix the batch size to that number.
            pooled = self.pool(mean)
        pooled = pooled.expand(-1, -1, *features.shape[2:])
        return self.fuse(
            torch.cat([pooled, *(branch(features) for branch in self.branches)], dim=1)
        )

    def keras_layers(self) -> Iterator[tuple[str, nn.Module]]:
        """See `ovseg.baseline.keras_weights`."""
        for part in (self.pool, *self.branches, self.fuse):
            yield from part.keras_layers()


class DeepLabV3Plus(nn.Module):
    """DeepLabV3+ on ResNet-50 (TensorflowDeepLabV3Plus of the baseline).

    It differs from the paper in what it takes from the encoder: the narrow maps inside `conv2_block3` and
    `conv4_block6` instead of the blocks' outputs. Where the baseline starts from ImageNet's weights, this class starts
    from random ones. Nothing inside divides by 255.

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
        if classes < 1:
            raise InputError(f"deeplabv3plus: classes is {classes}, expected at least 1.")
        self.scale = InputScale(input_scale)
        self.encoder = ResNet50Encoder()
        self.pyramid = AtrousPyramid(256)
        self.reduce_skip = ConvNormRelu(64, SKIP_WIDTH, 1)
        self.decoder = nn.Sequential(
            ConvNormRelu(WIDTH + SKIP_WIDTH, WIDTH, 3, relu_first=True),
            ConvNormRelu(WIDTH, WIDTH, 3, relu_first=True),
        )
        self.head = nn.Conv2d(WIDTH, classes, 1)
        nn.init.xavier_uniform_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, image: Tensor) -> Tensor:
        """Plain pixels, uint8 or float (N, 3, H, W), 0..255 RGB, any size -> logits (N, classes, H, W)."""
        skip, features = self.encoder(pad_to_stride(self.scale(image), self.stride))
        features = _upsample(self.pyramid(features))
        features = self.decoder(torch.cat([features, self.reduce_skip(skip)], dim=1))
        return self.head(_upsample(features))[..., : image.shape[-2], : image.shape[-1]]

    def keras_layers(self) -> Iterator[tuple[str, nn.Module]]:
        """Pairs of a Keras name and a module in Keras' order of creation, see `ovseg.baseline.keras_weights`."""
        yield from self.encoder.keras_layers()
        for part in (self.pyramid, self.reduce_skip, *self.decoder):
            yield from part.keras_layers()
        yield "conv2d", self.head


def _upsample(features: Tensor) -> Tensor:
    """Four times the size, bilinear between pixel centres as Keras does."""
    return F.interpolate(features, scale_factor=4, mode="bilinear", align_corners=False)
