"""The baseline's MultiResUNet: blocks that see three scales at once, and skip connections that convolve."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ovseg.core.errors import InputError
from ovseg.models.attention_unet import ConvNorm, init_glorot
from ovseg.models.layers import InputScale, pad_to_stride
from ovseg.models.unet import BATCH_NORM


def multires_filters(filters: int) -> tuple[int, int, int]:
    """Filters of a block's three convolutions: a sixth, a third and a half of `1.67 * filters`, truncated.

    The baseline's factors and order of multiplication: another order truncates some counts differently.
    """
    width = filters * 1.67
    return int(width * 0.167), int(width * 0.333), int(width * 0.5)


class MultiResBlock(nn.Module):
    """Three 3 x 3 convolutions in a row, their outputs side by side, added to a 1 x 1 convolution of the input.

    `out_channels` is the sum of `multires_filters(filters)`.

    Source: N. Ibtehaz, M. S. Rahman, MultiResUNet, Neural Networks 121, 2020.
    """

    def __init__(self, in_channels: int, filters: int):
        super().__init__()
        first, second, third = multires_filters(filters)
        self.out_channels = first + second + third
        self.first = ConvNorm(in_channels, first, bias=False)
        self.second = ConvNorm(first, second, bias=False)
        self.third = ConvNorm(second, third, bias=False)
        self.norm = nn.BatchNorm2d(self.out_channels, **BATCH_NORM)
        self.shortcut = ConvNorm(in_channels, self.out_channels, 1, bias=False, relu=False)
        self.last_norm = nn.BatchNorm2d(self.out_channels, **BATCH_NORM)

    def forward(self, features: Tensor) -> Tensor:
        first = self.first(features)
        second = self.second(first)
        scales = torch.cat([first, second, self.third(second)], dim=1)
        return self.last_norm(F.relu(self.norm(scales) + self.shortcut(features)))

    def keras_layers(self) -> Iterator[tuple[str, nn.Module]]:
        """See `ovseg.baseline.keras_weights`."""
        for part in (self.first, self.second, self.third):
            yield from part.keras_layers()
        yield "batch_normalization", self.norm
        yield from self.shortcut.keras_layers()
        yield "batch_normalization", self.last_norm


class ResUnit(nn.Module):
    """A 3 x 3 convolution added to a 1 x 1 convolution: a link of the residual path of a skip connection."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.main = ConvNorm(in_channels, out_channels, bias=False, relu=False)
        self.shortcut = ConvNorm(in_channels, out_channels, 1, bias=False, relu=False)
        self.norm = nn.BatchNorm2d(out_channels, **BATCH_NORM)

    def forward(self, features: Tensor) -> Tensor:
        return self.norm(F.relu(self.main(features) + self.shortcut(features)))

    def keras_layers(self) -> Iterator[tuple[str, nn.Module]]:
        """See `ovseg.baseline.keras_weights`."""
        yield from self.main.keras_layers()
        yield from self.shortcut.keras_layers()
        yield "batch_normalization", self.norm


class MultiResUNet(nn.Module):
    """MultiResUNet of the TensorFlow baseline (TensorflowMultiResUNet), which has no dropout.

    Level i stands for `base_filters * 2**i` filters; its blocks have about 1.67 times as many channels, see
    `multires_filters`. The skip connection of level i passes `num_layers - i` residual units. The last level is the
    bridge. Upsampling is a transposed convolution, the activation ReLU.

    Args:
        classes: output channels.
        base_filters: filters of the top level, at least 4: with fewer the first convolution would have none.
        num_layers: levels, the bridge included, at least 1; sizes are padded to a multiple of 2**(num_layers - 1).
        input_scale: factor on the pixels: the baseline divides by 255 inside the network.

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
        _check(classes, base_filters, num_layers)
        self.stride = 2 ** (num_layers - 1)
        self.scale = InputScale(input_scale)
        filters = [base_filters * 2**i for i in range(num_layers)]
        widths = [sum(multires_filters(count)) for count in filters]
        inner = range(num_layers - 1)
        self.encoder = nn.ModuleList(
            MultiResBlock(*pair) for pair in zip([3, *widths], filters, strict=False)
        )
        self.pool = nn.MaxPool2d(2)
        self.paths = nn.ModuleList(_res_path(widths[i], filters[i], num_layers - i) for i in inner)
        self.upsample = nn.ModuleList(
            nn.ConvTranspose2d(widths[i + 1], filters[i], 2, 2) for i in inner
        )
        self.decoder = nn.ModuleList(MultiResBlock(2 * filters[i], filters[i]) for i in inner)
        self.head = nn.Conv2d(widths[0], classes, 1)
        init_glorot(self)

    def forward(self, image: Tensor) -> Tensor:
        """Plain pixels, uint8 or float (N, 3, H, W), 0..255 RGB, any size -> logits (N, classes, H, W)."""
        features = pad_to_stride(self.scale(image), self.stride)
        skips = []
        for block, path in zip(self.encoder[:-1], self.paths, strict=True):
            features = block(features)
            skips.append(path(features))
            features = self.pool(features)
        features = self.encoder[-1](features)
        for upsample, block, skip in reversed(
            list(zip(self.upsample, self.decoder, skips, strict=True))
        ):
            features = block(torch.cat([upsample(features), skip], dim=1))
        return self.head(features)[..., : image.shape[-2], : image.shape[-1]]

    def keras_layers(self) -> Iterator[tuple[str, nn.Module]]:
        """Pairs of a Keras name and a module in Keras' order of creation, see `ovseg.baseline.keras_weights`."""
        for block, path in zip(self.encoder[:-1], self.paths, strict=True):
            yield from block.keras_layers()
            for unit in path:
                yield from unit.keras_layers()
        yield from self.encoder[-1].keras_layers()
        for upsample, block in reversed(list(zip(self.upsample, self.decoder, strict=True))):
            yield "conv2d_transpose", upsample
            yield from block.keras_layers()
        yield "conv2d", self.head


def _res_path(in_channels: int, out_channels: int, length: int) -> nn.Sequential:
    return nn.Sequential(
        *(ResUnit(out_channels if i else in_channels, out_channels) for i in range(length))
    )


def _check(classes: int, base_filters: int, num_layers: int) -> None:
    if classes < 1:
        raise InputError(f"multires_unet: classes is {classes}, expected at least 1.")
    if base_filters < 4:
        raise InputError(
            f"multires_unet: base_filters is {base_filters}, expected at least 4: the first convolution has "
            f"0.28 times as many, cut to a whole number."
        )
    if not 1 <= num_layers <= 10:
        raise InputError(f"multires_unet: num_layers is {num_layers}, expected 1..10.")
