"""The baseline's UNet 3+: every decoder node sees all five scales."""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ovseg.core.errors import InputError
from ovseg.models.attention_unet import ConvNorm
from ovseg.models.layers import InputScale, init_as_keras, pad_to_stride

LEVELS = 5  # written out in the baseline; its num_layers changes widths, not the depth


class EncoderBlock(nn.Module):
    """Two 3 x 3 `ConvNorm`s; the second drops twice as often as the first."""

    def __init__(self, in_channels: int, out_channels: int, dropout_rate: float):
        super().__init__()
        self.first = ConvNorm(in_channels, out_channels, dropout_rate=dropout_rate)
        self.second = ConvNorm(out_channels, out_channels, dropout_rate=2 * dropout_rate)

    def forward(self, features: Tensor) -> Tensor:
        return self.second(self.first(features))

    def keras_layers(self) -> Iterator[tuple[str, nn.Module]]:
        """See `ovseg.baseline.keras_weights`."""
        yield from self.first.keras_layers()
        yield from self.second.keras_layers()


class DecoderNode(nn.Module):
    """All levels resized to this node's, each convolved to the same number of channels, concatenated and merged.

    Args:
        level: where the node stands; its map has 1 / 2**level of the image's height and width.
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
        self.branches = nn.ModuleList(
            ConvNorm(count, branch_channels, dropout_rate=dropout_rate) for count in in_channels
        )
        self.merge = ConvNorm(
            len(in_channels) * branch_channels, out_channels, dropout_rate=dropout_rate
        )

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """The map of every level, the top first, each half as high and wide as the one before."""
        resized = [_shrink_or_grow(features, i - self.level) for i, features in enumerate(levels)]
        branches = [
            branch(features) for branch, features in zip(self.branches, resized, strict=True)
        ]
        return self.merge(torch.cat(branches, dim=1))

    def keras_layers(self) -> Iterator[tuple[str, nn.Module]]:
        """See `ovseg.baseline.keras_weights`."""
        for part in (*self.branches, self.merge):
            yield from part.keras_layers()


class UNet3Plus(nn.Module):
    """UNet 3+ of the TensorFlow baseline (TensorflowUNet3Plus), five levels deep, without deep supervision.

    Level i has `base_filters * 2**i` filters, the fifth is the bottleneck. A decoder node brings every level to
    `base_filters` channels and merges them into `num_layers * base_filters`. The output convolution is 3 x 3, with
    dropout after it. The baseline also trains with an L2 penalty of 1e-4 on every kernel, which belongs to the loss.

    Args:
        classes: output channels.
        base_filters: filters of the top level.
        num_layers: width of a decoder node in units of `base_filters`, at least 5. The depth is always 5, as in the
            baseline, whose versions before 2024 ignore the value and are as if it were 5. Sizes are padded to a
            multiple of 16.
        dropout_rate: dropout after every convolution, twice that after the second one of an encoder block, below 0.5.
        input_scale: factor on the pixels: 1 feeds 0..255, as the baseline does.

    Raises:
        InputError: a value that gives no network.

    Source: H. Huang et al., UNet 3+: a full-scale connected UNet for medical image segmentation, ICASSP 2020.
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
        _check(classes, base_filters, num_layers, dropout_rate)
        self.stride = 2 ** (LEVELS - 1)
        self.scale = InputScale(input_scale)
        filters = [base_filters * 2**i for i in range(LEVELS)]
        width = num_layers * base_filters

        def node(level: int) -> DecoderNode:
            sources = [*filters[: level + 1], *[width] * (LEVELS - 2 - level), filters[-1]]
            return DecoderNode(level, sources, base_filters, width, dropout_rate)

        self.encoder = nn.ModuleList(
            EncoderBlock(before, count, dropout_rate)
            for before, count in zip([3, *filters], filters, strict=False)
        )
        self.pool = nn.MaxPool2d(2)
        self.decoder = nn.ModuleList(node(level) for level in range(LEVELS - 1))
        self.head = nn.Conv2d(width, classes, 3, padding=1)
        self.dropout = nn.Dropout(dropout_rate)
        init_as_keras(self)  # every convolution of the baseline is He-normal, the output too

    def forward(self, image: Tensor) -> Tensor:
        """Plain pixels, uint8 or float (N, 3, H, W), 0..255 RGB, any size -> logits (N, classes, H, W)."""
        features = pad_to_stride(self.scale(image), self.stride)
        levels = []
        for level, block in enumerate(self.encoder):
            features = block(self.pool(features) if level else features)
            levels.append(features)
        for node in reversed(self.decoder):
            levels[node.level] = node(levels)
        return self.dropout(self.head(levels[0]))[..., : image.shape[-2], : image.shape[-1]]

    def keras_layers(self) -> Iterator[tuple[str, nn.Module]]:
        """Pairs of a Keras name and a module in Keras' order of creation, see `ovseg.baseline.keras_weights`."""
        for part in (*self.encoder, *reversed(self.decoder)):
            yield from part.keras_layers()
        yield "conv2d", self.head


def _shrink_or_grow(features: Tensor, octaves: int) -> Tensor:
    """Height and width times 2**octaves: max-pooling down, bilinear interpolation up."""
    if octaves < 0:
        return F.max_pool2d(features, 2**-octaves)
    return (
        F.interpolate(features, scale_factor=2**octaves, mode="bilinear") if octaves else features
    )


def _check(classes: int, base_filters: int, num_layers: int, dropout_rate: float) -> None:
    for name, value in {"classes": classes, "base_filters": base_filters}.items():
        if value < 1:
            raise InputError(f"unet3plus: {name} is {value}, expected at least 1.")
    if num_layers < LEVELS:
        raise InputError(
            f"unet3plus: num_layers is {num_layers}, expected at least {LEVELS}: the depth is fixed."
        )
    if not 0 <= 2 * dropout_rate < 1:
        raise InputError(
            f"unet3plus: dropout_rate {dropout_rate} makes {2 * dropout_rate:g} after every second convolution, "
            f"expected 0 to below 1. Lower dropout_rate."
        )
