"""The baseline's flexible UNet: large, dilated kernels at the top that shrink towards the bridge."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ovseg.core.errors import InputError
from ovseg.models.layers import (
    DilatedConv2d,
    FastUpsample2d,
    InputScale,
    build_activation,
    init_as_keras,
    pad_to_stride,
)

BATCH_NORM = {"eps": 1e-3, "momentum": 0.01}  # Keras' defaults; torch's are 1e-5 and 0.1


class ConvBlock(nn.Module):
    """Two "same" convolutions, each followed by the activation and, if asked, batch normalisation; dropout between.

    Args:
        in_channels: of the input.
        out_channels: of both convolutions.
        kernel: odd kernel size.
        dilation: of both convolutions.
        dropout_rate: probability of zeroing an element between the two.
        activation: Keras name.
        normalization: batch normalisation after each activation.
        convolution: how to compute the convolutions, see `layers.ALGORITHMS`.
        checkpointing: see `FlexibleUNet`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        dilation: int,
        dropout_rate: float,
        activation: str,
        normalization: bool,
        convolution: str,
        checkpointing: bool,
    ):
        super().__init__()
        self.conv1 = DilatedConv2d(
            in_channels, out_channels, kernel, dilation, algorithm=convolution
        )
        self.conv2 = DilatedConv2d(
            out_channels, out_channels, kernel, dilation, algorithm=convolution
        )
        self.norm1 = nn.BatchNorm2d(out_channels, **BATCH_NORM) if normalization else nn.Identity()
        self.norm2 = nn.BatchNorm2d(out_channels, **BATCH_NORM) if normalization else nn.Identity()
        self.activation = build_activation(activation)
        self.dropout = nn.Dropout(dropout_rate)
        self.checkpointing = checkpointing

    def forward(self, features: Tensor) -> Tensor:
        if self.checkpointing and self.training and torch.is_grad_enabled():
            return checkpoint(self._convolve, features, use_reentrant=False)
        return self._convolve(features)

    def _convolve(self, features: Tensor) -> Tensor:
        features = self.dropout(self.norm1(self.activation(self.conv1(features))))
        return self.norm2(self.activation(self.conv2(features)))

    def keras_layers(self) -> Iterator[tuple[str, nn.Module]]:
        """See `ovseg.baseline.keras_weights`."""
        yield from (("conv2d", self.conv1), ("conv2d", self.conv2))
        if isinstance(self.norm1, nn.BatchNorm2d):
            yield from (("batch_normalization", self.norm1), ("batch_normalization", self.norm2))


class FlexibleUNet(nn.Module):
    """UNet of the TensorFlow baseline (TensorflowSlightlyFlexibleUNet).

    Level i has `base_filters * 2**i` filters, kernels of `max(3, base_kernel - 2 i)`, dilation `max(1, dilation - i)`
    and dropout of `dropout_rate * i`; the last level is the bridge. With the experiment's settings (the defaults but
    `input_scale`, which is 1 there) it has 124,996,849 parameters.

    Args:
        classes: output channels.
        base_filters: filters of the top level.
        base_kernel: kernel size of the top level, odd.
        num_layers: levels, the bridge included, at least 1; sizes are padded to a multiple of 2**(num_layers - 1).
        dilation: of the top level.
        dropout_rate: dropout of level 1; level i drops i times as often, below 1 at the bridge.
        activation: Keras name, see `layers.ACTIVATIONS`.
        normalization: batch normalisation after each activation.
        input_scale: factor on the pixels: 1 feeds 0..255 as the experiment does, 1/255 feeds 0..1.
        convolution: how to compute the convolutions, see `layers.ALGORITHMS`; the numbers stay the same.
        checkpointing: keep only each block's input for the backward pass and compute the rest of it again: less memory
            for about a third more time, the same numbers. Not with `normalization`, whose running statistics would
            count every batch twice.

    Raises:
        InputError: a value that gives no network.
    """

    def __init__(
        self,
        classes: int = 1,
        base_filters: int = 16,
        base_kernel: int = 9,
        num_layers: int = 8,
        dilation: int = 3,
        dropout_rate: float = 0.05,
        activation: str = "relu",
        normalization: bool = False,
        input_scale: float = 1 / 255,
        convolution: str = "auto",
        checkpointing: bool = False,
    ):
        super().__init__()
        if checkpointing and normalization:
            raise InputError(
                "flexible_unet: checkpointing does not go with normalization. Set one of them to false."
            )
        _check(classes, base_filters, base_kernel, num_layers, dilation, dropout_rate)
        self.stride = 2 ** (num_layers - 1)
        self.scale = InputScale(input_scale)
        filters = [base_filters * 2**i for i in range(num_layers)]

        def block(level: int, in_channels: int) -> ConvBlock:
            kernel, spread = max(3, base_kernel - 2 * level), max(1, dilation - level)
            rate = dropout_rate * level
            how = (rate, activation, normalization, convolution, checkpointing)
            return ConvBlock(in_channels, filters[level], kernel, spread, *how)

        levels = range(num_layers)
        self.encoder = nn.ModuleList(block(i, filters[i - 1] if i else 3) for i in levels)
        self.pool = nn.MaxPool2d(2)
        self.upsample = nn.ModuleList(
            FastUpsample2d(filters[i + 1], filters[i], convolution) for i in levels[:-1]
        )
        self.decoder = nn.ModuleList(block(i, 2 * filters[i]) for i in levels[:-1])
        self.head = nn.Conv2d(base_filters, classes, 1)
        init_as_keras(self)
        nn.init.xavier_uniform_(self.head.weight)  # the output convolution has Keras' default

    def forward(self, image: Tensor) -> Tensor:
        """Plain pixels, uint8 or float (N, 3, H, W), 0..255 RGB, any size -> logits (N, classes, H, W)."""
        features = pad_to_stride(self.scale(image), self.stride)
        skips = []
        for block in self.encoder[:-1]:
            features = block(features)
            skips.append(features)
            features = self.pool(features)
        features = self.encoder[-1](features)
        for upsample, block, skip in reversed(
            list(zip(self.upsample, self.decoder, skips, strict=True))
        ):
            features = block(torch.cat([upsample(features), skip], dim=1))
        return self.head(features)[..., : image.shape[-2], : image.shape[-1]]

    def keras_layers(self) -> Iterator[tuple[str, nn.Module]]:
        """Pairs of a Keras name and a module in Keras' order of creation, see `ovseg.baseline.keras_weights`."""
        for block in self.encoder:
            yield from block.keras_layers()
        for upsample, block in reversed(list(zip(self.upsample, self.decoder, strict=True))):
            yield "conv2d_transpose", upsample
            yield from block.keras_layers()
        yield "conv2d", self.head


def _check(
    classes: int,
    base_filters: int,
    base_kernel: int,
    num_layers: int,
    dilation: int,
    dropout_rate: float,
):
    counts = {"classes": classes, "base_filters": base_filters, "dilation": dilation}
    for name, value in counts.items():
        if value < 1:
            raise InputError(f"flexible_unet: {name} is {value}, expected at least 1.")
    if not 1 <= num_layers <= 10:
        raise InputError(f"flexible_unet: num_layers is {num_layers}, expected 1..10.")
    if base_kernel < 1 or base_kernel % 2 == 0:
        raise InputError(f"flexible_unet: base_kernel is {base_kernel}, expected an odd number.")
    if not 0 <= dropout_rate * (num_layers - 1) < 1:
        raise InputError(
            f"flexible_unet: dropout_rate {dropout_rate} makes {dropout_rate * (num_layers - 1):g} at the bridge of "
            f"{num_layers} layers, expected 0 to below 1. Lower dropout_rate."
        )
