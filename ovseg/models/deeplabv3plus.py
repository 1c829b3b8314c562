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
from ovseg.models.resnet import KerasResNet, build_squeeze, number_layers

SKIP_BLOCK = "conv2_block3"
LAST_BLOCK = "conv4_block6"
WIDTH = 256  # channels of the decoder
SKIP_WIDTH = 48  # channels of the reduced skip connection
DILATIONS = (6, 12, 18)


class ResNet50Encoder(KerasResNet):
    """Keras' ResNet-50 up to `conv4_block6_2_relu`, the last layer that DeepLabV3+ uses."""

    def __init__(self) -> None:
        super().__init__((3, 4, 5))
        self.last = build_squeeze(1024, 256, 1)
        init_glorot(self)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Maps of 64 channels at 1/4 and of 256 channels at 1/16 of the image's size."""
        features = self.pool(self.embed(image))
        for name, block in self.blocks.items():
            narrow, features = block(features)
            if name == SKIP_BLOCK:
                skip = narrow
        return skip, self.last(features)

    def keras_layers(self) -> Iterator[tuple[str, nn.Module]]:
        yield from super().keras_layers()
        yield from number_layers(LAST_BLOCK, 1, self.last)


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
