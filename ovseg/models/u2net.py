"""The baseline's U2-Net: a UNet whose every block is a small UNet itself."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ovseg.models.checks import check_at_least, check_num_layers
from ovseg.models.layers import (
    InputScale,
    PortedModule,
    crop_to_image,
    encode,
    init_glorot,
    keras_layers_of,
    pad_to_stride,
)


class ConvRelu(nn.Conv2d):
    """A "same" 3 x 3 convolution with ReLU."""

    def __init__(self, in_channels: int, out_channels: int, dilation: int = 1):
        super().__init__(in_channels, out_channels, 3, padding=dilation, dilation=dilation)

    def forward(self, features: Tensor) -> Tensor:
        return F.relu(super().forward(features))


class ResidualUBlock(PortedModule):
    """RSU: a UNet of narrow convolutions, added to the convolution that it starts from.

    Args:
        name: of its layers in Keras.
        in_channels: channels of the input.
        narrow: channels inside.
        channels: channels of the output.
        depth: number of poolings.
    """

    def __init__(self, name: str, in_channels: int, narrow: int, channels: int, depth: int):
        super().__init__()
        self.name = name
        self.inlet = ConvRelu(in_channels, channels)
        self.down = nn.ModuleList([ConvRelu(channels, narrow)])
        for _ in range(depth):
            self.down.append(ConvRelu(narrow, narrow))
        self.up = nn.ModuleList([ConvRelu(narrow, narrow, dilation=2)])
        for _ in range(depth):
            self.up.append(ConvRelu(2 * narrow, narrow))
        self.outlet = ConvRelu(2 * narrow, channels)

    def forward(self, features: Tensor) -> Tensor:
        inlet = self.inlet(features)
        features = self.down[0](inlet)
        maps = [features]
        for conv in self.down[1:]:
            features = conv(F.max_pool2d(features, 2))
            maps.append(features)
        features = self.up[0](features)
        for conv in self.up[1:]:
            features = enlarge(conv(torch.cat([features, maps.pop()], dim=1)), 2)
        return self.outlet(torch.cat([features, maps.pop()], dim=1)) + inlet

    def keras_layers(self) -> Iterator[tuple[str, nn.Module]]:
        yield from name_layers(self.name, self.inlet, self.down, self.up, self.outlet)


class DilatedUBlock(PortedModule):
    """RSU-4F: as `ResidualUBlock`, with dilation in the place of pooling.

    Args:
        name: of its layers in Keras.
        in_channels: channels of the input.
        narrow: channels inside.
        channels: channels of the output.
    """

    def __init__(self, name: str, in_channels: int, narrow: int, channels: int):
        super().__init__()
        self.name = name
        self.inlet = ConvRelu(in_channels, channels)
        self.down = nn.ModuleList([ConvRelu(channels, narrow)])
        for dilation in (2, 4, 8):
            self.down.append(ConvRelu(narrow, narrow, dilation))
        self.up = nn.ModuleList()
        for dilation in (4, 2):
            self.up.append(ConvRelu(2 * narrow, narrow, dilation))
        self.outlet = ConvRelu(2 * narrow, channels)

    def forward(self, features: Tensor) -> Tensor:
        inlet = self.inlet(features)
        features = inlet
        maps = []
        for conv in self.down:
            features = conv(features)
            maps.append(features)
        features = maps.pop()
        for conv in self.up:
            features = conv(torch.cat([features, maps.pop()], dim=1))
        return self.outlet(torch.cat([features, maps.pop()], dim=1)) + inlet

    def keras_layers(self) -> Iterator[tuple[str, nn.Module]]:
        yield from name_layers(self.name, self.inlet, self.down, self.up, self.outlet)


def name_layers(
    name: str, inlet: nn.Module, down: nn.ModuleList, up: nn.ModuleList, outlet: nn.Module
) -> Iterator[tuple[str, nn.Module]]:
    """The convolutions of a block by Keras' names."""
    yield f"{name}_in", inlet
    for number, conv in enumerate(down):
        yield f"{name}_down_{number}", conv
    for number, conv in enumerate(up):
        yield f"{name}_up_{number}", conv
    yield f"{name}_out", outlet


def enlarge(features: Tensor, factor: int) -> Tensor:
    """Bilinear between pixel centres, as Keras does."""
    if factor == 1:
        return features
    return F.interpolate(features, scale_factor=factor, mode="bilinear")


class U2Net(PortedModule):
    """U2-Net of the TensorFlow baseline (TensorflowU2Net).

    Level i has `base_filters * 2**i` filters; two blocks without pooling follow below the last.
    Activations are ReLU, there is no batch normalisation. Quirks of the baseline: the side outputs
    become probabilities before they are fused, the network has the fused output alone, and several
    classes are sigmoids there, while ovseg takes the softmax of the same logits.

    Args:
        classes: output channels.
        base_filters: filters of the top level, at least 4: a block has a quarter of them inside.
        num_layers: levels that pool, at least 1; sizes are padded to a multiple of
            2**(num_layers + 1).
        in_channels: of the image; 3 in all of ovseg's data.
        input_scale: factor on the pixels: 1 feeds 0..255 as the baseline does, 1/255 feeds 0..1.

    Raises:
        InputError: a value that gives no network.

    Source: X. Qin et al., U2-Net: going deeper with nested U-structure for salient object
        detection, Pattern Recognition 106, 2020; keras-unet-collection's u2net_2d.
    """

    def __init__(
        self,
        classes: int = 1,
        base_filters: int = 16,
        num_layers: int = 6,
        in_channels: int = 3,
        input_scale: float = 1.0,
    ):
        super().__init__()
        check_at_least("u2net", 1, classes=classes, in_channels=in_channels)
        check_at_least("u2net", 4, base_filters=base_filters)
        check_num_layers("u2net", num_layers)
        filters = [base_filters * 2**level for level in range(num_layers)]
        deepest = filters[-1]
        half = deepest // 2

        self.stride = 2 ** (num_layers + 1)
        self.scale = InputScale(input_scale)
        self.encoder = nn.ModuleList()
        channels = in_channels
        for level, count in enumerate(filters):
            name = f"u2net_down_{level - 1}" if level else "u2net_in"
            depth = num_layers + 1 - level
            self.encoder.append(ResidualUBlock(name, channels, count // 4, count, depth))
            channels = count
        for number in range(2):
            name = f"u2net_down_4f_{number}"
            self.encoder.append(DilatedUBlock(name, channels, half, deepest))
            channels = deepest
        # Both lists start at the bottom.
        self.decoder = nn.ModuleList([DilatedUBlock("u2net_up_4f_0", 2 * deepest, half, deepest)])
        for step, count in enumerate(reversed(filters)):
            name = f"u2net_up_{step}"
            in_both = channels + count
            self.decoder.append(ResidualUBlock(name, in_both, count // 4, count, step + 2))
            channels = count
        self.sides = nn.ModuleList()
        for count in (deepest, deepest, *reversed(filters)):
            self.sides.append(nn.Conv2d(count, classes, 3, padding=1))
        self.head = nn.Conv2d(len(self.sides) * classes, classes, 1)
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
        maps = [features]
        for block in self.decoder:
            features = block(torch.cat([enlarge(features, 2), skips.pop()], dim=1))
            maps.append(features)

        probs = []
        for level, (side, features) in enumerate(zip(self.sides, maps, strict=True)):
            octaves = len(maps) - 1 - level
            probs.append(enlarge(side(features), 2**octaves).sigmoid())
        probs.reverse()  # the finest first
        return crop_to_image(self.head(torch.cat(probs, dim=1)), image)

    def keras_layers(self) -> Iterator[tuple[str, nn.Module]]:
        yield from keras_layers_of(*self.encoder, *self.decoder)
        *coarse, finest = self.sides
        for side in reversed(coarse):
            yield "u2net_output_conv", side
        yield "u2net_output_sup0", finest
        yield "u2net_output_final", self.head
