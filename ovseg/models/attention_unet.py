"""The baseline's Attention UNet: a gate at every skip connection weighs what passes by what comes from below."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ovseg.core.errors import InputError
from ovseg.models.layers import InputScale, pad_to_stride
from ovseg.models.unet import BATCH_NORM


class ConvNorm(nn.Module):
    """A "same" convolution, dropout, batch normalisation and, if asked, ReLU.

    Args:
        in_channels: of the input.
        out_channels: of the output.
        kernel: odd kernel size.
        dropout_rate: probability of zeroing an element of the convolution's output.
        bias: of the convolution.
        relu: whether ReLU comes last.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int = 3,
        dropout_rate: float = 0.0,
        bias: bool = True,
        relu: bool = True,
    ):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, bias=bias)
        self.dropout = nn.Dropout(dropout_rate)
        self.norm = nn.BatchNorm2d(out_channels, **BATCH_NORM)
        self.activation = nn.ReLU(inplace=True) if relu else nn.Identity()

    def forward(self, features: Tensor) -> Tensor:
        return self.activation(self.norm(self.dropout(self.conv(features))))

    def keras_layers(self) -> Iterator[tuple[str, nn.Module]]:
        """See `ovseg.baseline.keras_weights`."""
        yield from (("conv2d", self.conv), ("batch_normalization", self.norm))


class ConvBlock(nn.Module):
    """Two 3 x 3 `ConvNorm`s, the second with dropout."""

    def __init__(self, in_channels: int, out_channels: int, dropout_rate: float):
        super().__init__()
        self.first = ConvNorm(in_channels, out_channels)
        self.second = ConvNorm(out_channels, out_channels, dropout_rate=dropout_rate)

    def forward(self, features: Tensor) -> Tensor:
        return self.second(self.first(features))

    def keras_layers(self) -> Iterator[tuple[str, nn.Module]]:
        """See `ovseg.baseline.keras_weights`."""
        yield from self.first.keras_layers()
        yield from self.second.keras_layers()


class AttentionGate(nn.Module):
    """Weighs every element of a skip connection by a number in 0..1 that the upsampled features and the skip decide.

    Source: O. Oktay et al., Attention U-Net: learning where to look for the pancreas, MIDL 2018.
    """

    def __init__(self, gate_channels: int, skip_channels: int, dropout_rate: float):
        super().__init__()
        self.gate = ConvNorm(gate_channels, skip_channels, 1, relu=False)
        self.skip = ConvNorm(skip_channels, skip_channels, 1, dropout_rate, relu=False)
        self.weight = nn.Conv2d(skip_channels, skip_channels, 1)

    def forward(self, gate: Tensor, skip: Tensor) -> Tensor:
        """Two maps of the same height and width to the weighed skip, same shape as `skip`."""
        return torch.sigmoid(self.weight(F.relu(self.gate(gate) + self.skip(skip)))) * skip

    def keras_layers(self) -> Iterator[tuple[str, nn.Module]]:
        """See `ovseg.baseline.keras_weights`."""
        yield from self.gate.keras_layers()
        yield from self.skip.keras_layers()
        yield "conv2d", self.weight


class AttentionUNet(nn.Module):
    """Attention UNet of the TensorFlow baseline (TensorflowAttentionUNet).

    Level i has `base_filters * 2**i` filters; the last level is the bridge. Upsampling is bilinear, activations are
    ReLU.

    Args:
        classes: output channels.
        base_filters: filters of the top level.
        num_layers: levels, the bridge included, at least 1; sizes are padded to a multiple of 2**(num_layers - 1).
        dropout_rate: dropout before the second normalisation of every block and in the skip's branch of every gate.
        input_scale: factor on the pixels: 1 feeds 0..255, as the baseline does since March 2024; before that 1/255.

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
        _check(classes, base_filters, num_layers, dropout_rate)
        self.stride = 2 ** (num_layers - 1)
        self.scale = InputScale(input_scale)
        filters = [base_filters * 2**i for i in range(num_layers)]
        inner = range(num_layers - 1)
        self.encoder = nn.ModuleList(
            ConvBlock(below, above, dropout_rate)
            for below, above in zip([3, *filters], filters, strict=False)
        )
        self.pool = nn.MaxPool2d(2)
        self.gates = nn.ModuleList(
            AttentionGate(filters[i + 1], filters[i], dropout_rate) for i in inner
        )
        self.decoder = nn.ModuleList(
            ConvBlock(filters[i + 1] + filters[i], filters[i], dropout_rate) for i in inner
        )
        self.head = nn.Conv2d(base_filters, classes, 1)
        init_glorot(self)

    def forward(self, image: Tensor) -> Tensor:
        """Plain pixels, uint8 or float (N, 3, H, W), 0..255 RGB, any size -> logits (N, classes, H, W)."""
        features = pad_to_stride(self.scale(image), self.stride)
        skips = []
        for block in self.encoder[:-1]:
            features = block(features)
            skips.append(features)
            features = self.pool(features)
        features = self.encoder[-1](features)
        for gate, block, skip in reversed(list(zip(self.gates, self.decoder, skips, strict=True))):
            features = F.interpolate(features, scale_factor=2, mode="bilinear")
            features = block(torch.cat([features, gate(features, skip)], dim=1))
        return self.head(features)[..., : image.shape[-2], : image.shape[-1]]

    def keras_layers(self) -> Iterator[tuple[str, nn.Module]]:
        """Pairs of a Keras name and a module in Keras' order of creation, see `ovseg.baseline.keras_weights`."""
        for block in self.encoder:
            yield from block.keras_layers()
        for gate, block in reversed(list(zip(self.gates, self.decoder, strict=True))):
            yield from gate.keras_layers()
            yield from block.keras_layers()
        yield "conv2d", self.head


def init_glorot(network: nn.Module) -> None:
    """Keras' default: Glorot-uniform convolutions of both kinds, zero biases."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def _check(classes: int, base_filters: int, num_layers: int, dropout_rate: float) -> None:
    for name, value in {"classes": classes, "base_filters": base_filters}.items():
        if value < 1:
            raise InputError(f"attention_unet: {name} is {value}, expected at least 1.")
    if not 1 <= num_layers <= 10:
        raise InputError(f"attention_unet: num_layers is {num_layers}, expected 1..10.")
    if not 0 <= dropout_rate < 1:
        raise InputError(f"attention_unet: dropout_rate is {dropout_rate}, expected 0 to below 1.")
