"""The baseline's MultiResUNet: blocks of three scales, and skip connections that convolve."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ovseg.core.errors import InputError
from ovseg.models.checks import check_at_least, check_num_layers
from ovseg.models.layers import (
    ConvNorm,
    InputScale,
    PortedModule,
    batch_norm,
    crop_to_image,
    init_glorot,
    keras_layers_of,
    pad_to_stride,
)


def multires_filters(filters: int) -> tuple[int, int, int]:
    """Filters of a block's three convolutions: a sixth, a third and a half of `1.67 * filters`.

    They are cut to whole numbers. The factors and the order of multiplication are the baseline's;
    another order cuts some of them to another number.
    """
    width = filters * 1.67
    return int(width * 0.167), int(width * 0.333), int(width * 0.5)


class MultiResBlock(PortedModule):
    """Three 3 x 3 convolutions in a row, concatenated, plus a 1 x 1 convolution of the input.

    The output has `sum(multires_filters(filters))` channels.

    Source: N. Ibtehaz, M. S. Rahman, MultiResUNet, Neural Networks 121, 2020.
    """

    def __init__(self, in_channels: int, filters: int):
        super().__init__()
        first, second, third = multires_filters(filters)
        self.out_channels = first + second + third
        self.first = ConvNorm(in_channels, first, bias=False)
        self.second = ConvNorm(first, second, bias=False)
        self.third = ConvNorm(second, third, bias=False)
        self.norm = batch_norm(self.out_channels)
        self.shortcut = ConvNorm(in_channels, self.out_channels, 1, bias=False, relu=False)
        self.last_norm = batch_norm(self.out_channels)

    def forward(self, features: Tensor) -> Tensor:
        first = self.first(features)
        second = self.second(first)
        third = self.third(second)
        scales = torch.cat([first, second, third], dim=1)
        total = self.norm(scales) + self.shortcut(features)
        return self.last_norm(F.relu(total))

    def keras_layers(self) -> Iterator[tuple[str, nn.Module]]:
        yield from keras_layers_of(self.first, self.second, self.third)
        yield "batch_normalization", self.norm
        yield from keras_layers_of(self.shortcut)
        yield "batch_normalization", self.last_norm


class ResUnit(PortedModule):
    """A 3 x 3 convolution plus a 1 x 1 convolution: one unit of a skip connection's path."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.main = ConvNorm(in_channels, out_channels, bias=False, relu=False)
        self.shortcut = ConvNorm(in_channels, out_channels, 1, bias=False, relu=False)
        self.norm = batch_norm(out_channels)

    def forward(self, features: Tensor) -> Tensor:
        total = self.main(features) + self.shortcut(features)
        return self.norm(F.relu(total))

    def keras_layers(self) -> Iterator[tuple[str, nn.Module]]:
        yield from keras_layers_of(self.main, self.shortcut)
        yield "batch_normalization", self.norm


class MultiResUNet(PortedModule):
    """MultiResUNet of the TensorFlow baseline (TensorflowMultiResUNet), which has no dropout.

    Level i stands for `base_filters * 2**i` filters; its blocks have about 1.67 times as many
    channels, see `multires_filters`. The skip connection of level i passes through
    `num_layers - i` residual units. The last level is the bridge. Upsampling is a transposed
    convolution, the activation ReLU.

    Args:
        classes: output channels.
        base_filters: filters of the top level, at least 4: with fewer the first convolution would
            have none.
        num_layers: levels, the bridge included, at least 1; sizes are padded to a multiple of
            2**(num_layers - 1).
        input_scale: factor on the pixels; the baseline divides by 255 inside the network.

    Raises:
        InputError: a value that gives no network.
    """

    def __init__(
        self,
        classes: int = 1,
        base_filters: int = 16,
        num_layers: int = 5,
        input_scale: float = 1 / 255,
    ):
        super().__init__()
        check_at_least("multires_unet", 1, classes=classes)
        _check_filters(base_filters)
        check_num_layers("multires_unet", num_layers)
        filters = [base_filters * 2**level for level in range(num_layers)]
        widths = [sum(multires_filters(count)) for count in filters]
        self.stride = 2 ** (num_layers - 1)
        self.scale = InputScale(input_scale)
        self.encoder = nn.ModuleList()
        channels = 3
        for level in range(num_layers):
            self.encoder.append(MultiResBlock(channels, filters[level]))
            channels = widths[level]
        self.pool = nn.MaxPool2d(2)
        # These lists start at the top, like the encoder.
        self.paths = nn.ModuleList()
        for level in range(num_layers - 1):
            self.paths.append(_build_path(widths[level], filters[level], num_layers - level))
        self.upsample = nn.ModuleList()
        for level in range(num_layers - 1):
            self.upsample.append(nn.ConvTranspose2d(widths[level + 1], filters[level], 2, 2))
        self.decoder = nn.ModuleList()
        for level in range(num_layers - 1):
            self.decoder.append(MultiResBlock(2 * filters[level], filters[level]))
        self.head = nn.Conv2d(widths[0], classes, 1)
        init_glorot(self)

    def forward(self, image: Tensor) -> Tensor:
        """Predict logits.

        Args:
            image: plain pixels, uint8 or float (N, 3, H, W), 0..255 RGB, any size.

        Returns:
            (N, classes, H, W).
        """
        features = pad_to_stride(self.scale(image), self.stride)
        skips = []
        for block, path in zip(self.encoder[:-1], self.paths, strict=True):
            features = block(features)
            skips.append(path(features))
            features = self.pool(features)
        features = self.encoder[-1](features)
        for level in reversed(range(len(skips))):
            upsampled = self.upsample[level](features)
            features = self.decoder[level](torch.cat([upsampled, skips[level]], dim=1))
        return crop_to_image(self.head(features), image)

    def keras_layers(self) -> Iterator[tuple[str, nn.Module]]:
        for block, path in zip(self.encoder[:-1], self.paths, strict=True):
            yield from keras_layers_of(block, *path.children())
        yield from keras_layers_of(self.encoder[-1])
        for level in reversed(range(len(self.decoder))):
            yield "conv2d_transpose", self.upsample[level]
            yield from keras_layers_of(self.decoder[level])
        yield "conv2d", self.head


def _build_path(in_channels: int, out_channels: int, length: int) -> nn.Sequential:
    """The residual units of a skip connection."""
    units = [ResUnit(in_channels, out_channels)]
    for _ in range(length - 1):
        units.append(ResUnit(out_channels, out_channels))
    return nn.Sequential(*units)


def _check_filters(base_filters: int) -> None:
    if base_filters < 4:
        raise InputError(
            f"multires_unet: base_filters is {base_filters}, expected at least 4: the first "
            "convolution has 0.28 times as many, cut to a whole number."
        )
