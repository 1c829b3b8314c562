"""The baseline's flexible UNet: large, dilated kernels that shrink towards the bridge."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ovseg.core.errors import InputError
from ovseg.models.checks import check_at_least, check_num_layers
from ovseg.models.convolutions import DilatedConv2d, FastUpsample2d
from ovseg.models.layers import (
    FastDropout,
    InputScale,
    PortedModule,
    batch_norm,
    build_activation,
    crop_to_image,
    encode,
    init_he_normal,
    keras_layers_of,
    pad_to_stride,
)


class ConvBlock(PortedModule):
    """Two "same" convolutions, each with the activation and, if asked, batch normalisation.

    Dropout stands between the two.

    Args:
        in_channels: channels of the input.
        out_channels: channels after both convolutions.
        kernel: odd kernel size.
        dilation: distance of the kernel's elements in pixels.
        dropout_rate: probability of zeroing an element between the two.
        activation: Keras name.
        normalization: batch normalisation after each activation.
        convolution: how to compute the convolutions, see `convolutions.ALGORITHMS`.
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
        self.norm1 = batch_norm(out_channels) if normalization else nn.Identity()
        self.norm2 = batch_norm(out_channels) if normalization else nn.Identity()
        self.activation = build_activation(activation)
        self.dropout = FastDropout(dropout_rate)
        self.checkpointing = checkpointing

    def forward(self, features: Tensor) -> Tensor:
        if self.checkpointing and self.training and torch.is_grad_enabled():
            return checkpoint(self._convolve, features, use_reentrant=False)
        return self._convolve(features)

    def _convolve(self, features: Tensor) -> Tensor:
        features = self.norm1(self.activation(self.conv1(features)))
        features = self.dropout(features)
        return self.norm2(self.activation(self.conv2(features)))

    def keras_layers(self) -> Iterator[tuple[str, nn.Module]]:
        yield "conv2d", self.conv1
        yield "conv2d", self.conv2
        for norm in (self.norm1, self.norm2):
            if isinstance(norm, nn.BatchNorm2d):
                yield "batch_normalization", norm


class FlexibleUNet(PortedModule):
    """UNet of the TensorFlow baseline (TensorflowSlightlyFlexibleUNet).

    Level i has `base_filters * 2**i` filters, kernels of `max(3, base_kernel - 2 i)`, dilation
    `max(1, dilation - i)` and dropout of `dropout_rate * i`; the last level is the bridge. With the
    experiment's settings (the defaults except `input_scale`, which is 1 there) it has 124,996,849
    parameters.

    Args:
        classes: output channels.
        base_filters: filters of the top level.
        base_kernel: kernel size of the top level, odd.
        num_layers: levels, the bridge included, at least 1; sizes are padded to a multiple of
            2**(num_layers - 1).
        dilation: of the top level.
        dropout_rate: dropout of level 1; level i has i times as much, below 1 at the bridge.
        activation: Keras name, see `layers.ACTIVATIONS`.
        normalization: batch normalisation after each activation.
        input_scale: factor on the pixels: 1 feeds 0..255 as the experiment does, 1/255 feeds 0..1.
        convolution: how to compute the convolutions, see `convolutions.ALGORITHMS`; the numbers
            stay the same.
        checkpointing: keep only each block's input for the backward pass and compute the rest of it
            again: less memory for about a third more time, the same numbers. Not together with
            `normalization`, whose running statistics would count every batch twice.

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
                "flexible_unet: checkpointing and normalization can't be used together. "
                "Set one of them to false."
            )
        check_at_least(
            "flexible_unet", 1, classes=classes, base_filters=base_filters, dilation=dilation
        )
        check_num_layers("flexible_unet", num_layers)
        _check_kernel(base_kernel)
        _check_dropout(dropout_rate, num_layers)

        def build_block(level: int, in_channels: int) -> ConvBlock:
            return ConvBlock(
                in_channels,
                filters[level],
                kernel=max(3, base_kernel - 2 * level),
                dilation=max(1, dilation - level),
                dropout_rate=dropout_rate * level,
                activation=activation,
                normalization=normalization,
                convolution=convolution,
                checkpointing=checkpointing,
            )

        filters = [base_filters * 2**level for level in range(num_layers)]
        self.stride = 2 ** (num_layers - 1)
        self.scale = InputScale(input_scale)
        self.encoder = nn.ModuleList()
        channels = 3
        for level in range(num_layers):
            self.encoder.append(build_block(level, channels))
            channels = filters[level]
        # Both lists start at the top, like the encoder.
        self.upsample = nn.ModuleList()
        for level in range(num_layers - 1):
            upsample = FastUpsample2d(filters[level + 1], filters[level], convolution)
            self.upsample.append(upsample)
        self.decoder = nn.ModuleList()
        for level in range(num_layers - 1):
            self.decoder.append(build_block(level, 2 * filters[level]))
        self.head = nn.Conv2d(base_filters, classes, 1)
        init_he_normal(self)
        nn.init.xavier_uniform_(self.head.weight)  # the baseline's last layer has Keras' default

    def forward(self, image: Tensor) -> Tensor:
        """Predict logits.

        Args:
            image: plain pixels, uint8 or float (N, 3, H, W), 0..255 RGB, any size.

        Returns:
            (N, classes, H, W).
        """
        pixels = pad_to_stride(self.scale(image), self.stride)
        skips, features = encode(self.encoder, pixels)
        for level in reversed(range(len(skips))):
            upsampled = self.upsample[level](features)
            features = self.decoder[level](torch.cat([upsampled, skips[level]], dim=1))
        return crop_to_image(self.head(features), image)

    def keras_layers(self) -> Iterator[tuple[str, nn.Module]]:
        yield from keras_layers_of(*self.encoder)
        for level in reversed(range(len(self.decoder))):
            yield "conv2d_transpose", self.upsample[level]
            yield from keras_layers_of(self.decoder[level])
        yield "conv2d", self.head


def _check_kernel(base_kernel: int) -> None:
    if base_kernel < 1 or base_kernel % 2 == 0:
        raise InputError(f"flexible_unet: base_kernel is {base_kernel}, expected an odd number.")


def _check_dropout(dropout_rate: float, num_layers: int) -> None:
    at_bridge = dropout_rate * (num_layers - 1)
    if not 0 <= at_bridge < 1:
        raise InputError(
            f"flexible_unet: dropout_rate {dropout_rate} makes {at_bridge:g} at the bridge of "
            f"{num_layers} layers, expected 0 to below 1. Lower dropout_rate."
        )
