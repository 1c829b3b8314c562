"""The baseline's UNet 3+: every decoder node gets the features of all five levels."""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ovseg.core.errors import InputError
from ovseg.models.checks import check_at_least
from ovseg.models.layers import (
    ConvNorm,
    FastDropout,
    InputScale,
    PortedModule,
    crop_to_image,
    init_he_normal,
    keras_layers_of,
    pad_to_stride,
)

LEVELS = 5  # fixed in the baseline, whose num_layers changes widths and not the depth


class EncoderBlock(PortedModule):
    """Two 3 x 3 `ConvNorm`s; the second has twice the dropout of the first."""

    def __init__(self, in_channels: int, out_channels: int, dropout_rate: float):
        super().__init__()
        self.first = ConvNorm(in_channels, out_channels, dropout_rate=dropout_rate)
        self.second = ConvNorm(out_channels, out_channels, dropout_rate=2 * dropout_rate)

    def forward(self, features: Tensor) -> Tensor:
        return self.second(self.first(features))

    def keras_layers(self) -> Iterator[tuple[str, nn.Module]]:
        yield from keras_layers_of(self.first, self.second)


class DecoderNode(PortedModule):
    """Resizes all levels to its own size, convolves each, and merges them.

    Args:
        level: of the node; its map has 1 / 2**level of the image's height and width.
        in_channels: of every level, the top first.
        branch_channels: of every level after its convolution.
        out_channels: of the merged map.
        dropout_rate: of every convolution.
    """

    def __init__(
        self,
        level: int,
        in_channels: Sequence[int],
        branch_channels: int,
        out_channels: int,
        dropout_rate: float,
    ):
        super().__init__()
        self.level = level
        self.branches = nn.ModuleList()
        for count in in_channels:
            self.branches.append(ConvNorm(count, branch_channels, dropout_rate=dropout_rate))
        merged_channels = len(in_channels) * branch_channels
        self.merge = ConvNorm(merged_channels, out_channels, dropout_rate=dropout_rate)

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """Merge the maps of all levels, the top first, each half as high and wide as the last."""
        branches = []
        for level, (branch, features) in enumerate(zip(self.branches, levels, strict=True)):
            branches.append(branch(_resize(features, level - self.level)))
        return self.merge(torch.cat(branches, dim=1))

    def keras_layers(self) -> Iterator[tuple[str, nn.Module]]:
        yield from keras_layers_of(*self.branches, self.merge)


class UNet3Plus(PortedModule):
    """UNet 3+ of the TensorFlow baseline (TensorflowUNet3Plus), without deep supervision.

    Level i has `base_filters * 2**i` filters; the fifth is the bottleneck. A decoder node brings
    every level to `base_filters` channels and merges them into `num_layers * base_filters`. The
    output convolution is 3 x 3, with dropout after it. The baseline also trains with an L2 penalty
    of 1e-4 on every kernel, which belongs to the loss.

    Args:
        classes: output channels.
        base_filters: filters of the top level.
        num_layers: width of a decoder node in units of `base_filters`, at least 5. The depth is
            always 5, as in the baseline, whose versions before 2024 ignore the value as if it were
            5. Sizes are padded to a multiple of 16.
        dropout_rate: dropout after every convolution, twice that after the second one of an encoder
            block, below 0.5.
        input_scale: factor on the pixels: 1 feeds 0..255, as the baseline does.

    Raises:
        InputError: a value that gives no network.

    Source: H. Huang et al., UNet 3+: a full-scale connected UNet for medical image segmentation,
        ICASSP 2020.
    """

    def __init__(
        self,
        classes: int = 1,
        base_filters: int = 16,
        num_layers: int = LEVELS,
        dropout_rate: float = 0.0,
        input_scale: float = 1.0,
    ):
        super().__init__()
        check_at_least("unet3plus", 1, classes=classes, base_filters=base_filters)
        _check_width(num_layers)
        _check_dropout(dropout_rate)
        filters = [base_filters * 2**level for level in range(LEVELS)]
        width = num_layers * base_filters
        self.stride = 2 ** (LEVELS - 1)
        self.scale = InputScale(input_scale)
        self.encoder = nn.ModuleList()
        channels = 3
        for count in filters:
            self.encoder.append(EncoderBlock(channels, count, dropout_rate))
            channels = count
        self.pool = nn.MaxPool2d(2)
        self.decoder = nn.ModuleList()
        for level in range(LEVELS - 1):
            # Levels below this one come from the decoder, the bottleneck from the encoder.
            of_encoder = filters[: level + 1]
            of_decoder = [width] * (LEVELS - 2 - level)
            sources = [*of_encoder, *of_decoder, filters[-1]]
            node = DecoderNode(level, sources, base_filters, width, dropout_rate)
            self.decoder.append(node)
        self.head = nn.Conv2d(width, classes, 3, padding=1)
        self.dropout = FastDropout(dropout_rate)
        init_he_normal(self)  # every convolution of the baseline, the output too

    def forward(self, image: Tensor) -> Tensor:
        """Predict logits.

        Args:
            image: plain pixels, uint8 or float (N, 3, H, W), 0..255 RGB, any size.

        Returns:
            (N, classes, H, W).
        """
        features = pad_to_stride(self.scale(image), self.stride)
        levels = []
        for level, block in enumerate(self.encoder):
            if level > 0:
                features = self.pool(features)
            features = block(features)
            levels.append(features)
        for level in reversed(range(LEVELS - 1)):
            levels[level] = self.decoder[level](levels)
        return crop_to_image(self.dropout(self.head(levels[0])), image)

    def keras_layers(self) -> Iterator[tuple[str, nn.Module]]:
        yield from keras_layers_of(*self.encoder, *reversed(self.decoder))
        yield "conv2d", self.head


def _resize(features: Tensor, octaves: int) -> Tensor:
    """Multiply height and width by 2**octaves, by max-pooling or bilinear interpolation."""
    if octaves == 0:
        return features
    if octaves < 0:
        return F.max_pool2d(features, 2**-octaves)
    return F.interpolate(features, scale_factor=2**octaves, mode="bilinear")


def _check_width(num_layers: int) -> None:
    if num_layers < LEVELS:
        raise InputError(
            f"unet3plus: num_layers is {num_layers}, expected at least {LEVELS}: the depth is "
            "fixed."
        )


def _check_dropout(dropout_rate: float) -> None:
    if not 0 <= 2 * dropout_rate < 1:
        raise InputError(
            f"unet3plus: dropout_rate {dropout_rate} makes {2 * dropout_rate:g} after every second "
            "convolution, expected 0 to below 1. Lower dropout_rate."
        )
