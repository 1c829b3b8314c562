"""The baseline's Attention UNet: a gate weighs every skip connection.

The weights follow from the skip itself and from the features of the level below.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ovseg.models.checks import check_at_least, check_num_layers, check_rate
from ovseg.models.layers import (
    ConvNorm,
    InputScale,
    PortedModule,
    crop_to_image,
    encode,
    init_glorot,
    keras_layers_of,
    pad_to_stride,
)


class ConvBlock(PortedModule):
    """Two 3 x 3 `ConvNorm`s, the second with dropout."""

    def __init__(self, in_channels: int, out_channels: int, dropout_rate: float):
        super().__init__()
        self.first = ConvNorm(in_channels, out_channels)
        self.second = ConvNorm(out_channels, out_channels, dropout_rate=dropout_rate)

    def forward(self, features: Tensor) -> Tensor:
        return self.second(self.first(features))

    def keras_layers(self) -> Iterator[tuple[str, nn.Module]]:
        yield from keras_layers_of(self.first, self.second)


class AttentionGate(PortedModule):
    """Multiplies every element of a skip connection by a weight in 0..1.

    Source: O. Oktay et al., Attention U-Net: learning where to look for the pancreas, MIDL 2018.
    """

    def __init__(self, gate_channels: int, skip_channels: int, dropout_rate: float):
        super().__init__()
        self.gate = ConvNorm(gate_channels, skip_channels, 1, relu=False)
        self.skip = ConvNorm(skip_channels, skip_channels, 1, dropout_rate, relu=False)
        self.weight = nn.Conv2d(skip_channels, skip_channels, 1)

    def forward(self, gate: Tensor, skip: Tensor) -> Tensor:
        """Weigh a skip connection.

        Args:
            gate: upsampled features of the level below, (N, gate_channels, H, W).
            skip: (N, skip_channels, H, W).

        Returns:
            The weighed skip, same shape as `skip`.
        """
        features = F.relu(self.gate(gate) + self.skip(skip))
        return torch.sigmoid(self.weight(features)) * skip

    def keras_layers(self) -> Iterator[tuple[str, nn.Module]]:
        yield from keras_layers_of(self.gate, self.skip)
        yield "conv2d", self.weight


class AttentionUNet(PortedModule):
    """Attention UNet of the TensorFlow baseline (TensorflowAttentionUNet).

    Level i has `base_filters * 2**i` filters; the last level is the bridge. Upsampling is bilinear,
    activations are ReLU.

    Args:
        classes: output channels.
        base_filters: filters of the top level.
        num_layers: levels, the bridge included, at least 1; sizes are padded to a multiple of
            2**(num_layers - 1).
        dropout_rate: dropout before the second normalisation of every block and in the skip's
            branch of every gate.
        input_scale: factor on the pixels: 1 feeds 0..255, as the baseline does since March 2024;
            before that it was 1/255.

    Raises:
        InputError: a value that gives no network.
    """

    def __init__(
        self,
        classes: int = 1,
        base_filters: int = 16,
        num_layers: int = 5,
        dropout_rate: float = 0.1,
        input_scale: float = 1.0,
    ):
        super().__init__()
        check_at_least("attention_unet", 1, classes=classes, base_filters=base_filters)
        check_num_layers("attention_unet", num_layers)
        check_rate("attention_unet", dropout_rate=dropout_rate)
        filters = [base_filters * 2**level for level in range(num_layers)]
        self.stride = 2 ** (num_layers - 1)
        self.scale = InputScale(input_scale)
        self.encoder = nn.ModuleList()
        channels = 3
        for count in filters:
            self.encoder.append(ConvBlock(channels, count, dropout_rate))
            channels = count
        # Both lists start at the top, like the encoder.
        self.gates = nn.ModuleList()
        for level in range(num_layers - 1):
            self.gates.append(AttentionGate(filters[level + 1], filters[level], dropout_rate))
        self.decoder = nn.ModuleList()
        for level in range(num_layers - 1):
            both = filters[level + 1] + filters[level]
            self.decoder.append(ConvBlock(both, filters[level], dropout_rate))
        self.head = nn.Conv2d(base_filters, classes, 1)
        init_glorot(self)

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
            features = F.interpolate(features, scale_factor=2, mode="bilinear")
            weighed = self.gates[level](features, skips[level])
            features = self.decoder[level](torch.cat([features, weighed], dim=1))
        return crop_to_image(self.head(features), image)

    def keras_layers(self) -> Iterator[tuple[str, nn.Module]]:
        yield from keras_layers_of(*self.encoder)
        for level in reversed(range(len(self.decoder))):
            yield from keras_layers_of(self.gates[level], self.decoder[level])
        yield "conv2d", self.head
