"""The baseline's Sharp UNet: a UNet whose skip connections pass a fixed sharpening filter."""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ovseg.core.errors import InputError
from ovseg.models.checks import check_at_least, check_filters
from ovseg.models.layers import (
    InputScale,
    KerasNamed,
    PortedModule,
    SameConv2d,
    crop_to_image,
    encode,
    init_glorot,
    keras_layers_of,
    pad_to_stride,
)

SHARPEN = ((-1.0, -1.0, -1.0), (-1.0, 8.0, -1.0), (-1.0, -1.0, -1.0))


class Sharpening(KerasNamed):
    """A fixed 3 x 3 filter on every channel: 8 times the pixel minus its eight neighbours.

    Nothing learns it, but the baseline's files hold it, in the layout (3, 3, channels, 1).
    """

    depthwise_kernel: Tensor

    def __init__(self, channels: int):
        super().__init__()
        kernel = torch.tensor(SHARPEN)[:, :, None, None].repeat(1, 1, channels, 1)
        self.register_buffer("depthwise_kernel", kernel)

    def forward(self, features: Tensor) -> Tensor:
        kernel = self.depthwise_kernel.permute(2, 3, 0, 1)
        return F.conv2d(features, kernel, padding=1, groups=len(kernel))


class ConvPair(PortedModule):
    """Two "same" convolutions, each with ReLU."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: tuple[int, int],
        dilation: tuple[int, int],
    ):
        super().__init__()
        self.conv1 = SameConv2d(in_channels, out_channels, kernel, dilation)
        self.conv2 = SameConv2d(out_channels, out_channels, kernel, dilation)

    def forward(self, features: Tensor) -> Tensor:
        return F.relu(self.conv2(F.relu(self.conv1(features))))

    def keras_layers(self) -> Iterator[tuple[str, nn.Module]]:
        yield "conv2d", self.conv1
        yield "conv2d", self.conv2


class SharpUNet(PortedModule):
    """Sharp UNet of the TensorFlow baseline (TensorflowSharpUNet).

    The baseline has a bug, which is kept by default: it makes two convolutions on every level of
    the decoder, but the level above transposes what they were made from, so that only those of the
    top level are in the network. The decoder is linear down to them.

    Args:
        classes: output channels.
        filters: of every level of the encoder, the top first; sizes are padded to a multiple of
            2**len(filters).
        max_filter: filters of the bridge.
        base_ksize: kernel size, one number or (height, width).
        dilation: of every convolution but the transposed ones, the filters and the head; one
            number or (down, across).
        full_decoder: the network that was intended: every level of the decoder has its two
            convolutions. No file of the baseline fits it.
        in_channels: of the image; 3 in all of ovseg's data.
        input_scale: factor on the pixels: 1 feeds 0..255 as the baseline does, 1/255 feeds 0..1.

    Raises:
        InputError: a value that gives no network.

    Source: H. Zunair, A. Ben Hamza, Sharp U-Net, Computers in Biology and Medicine 136, 2021.
    """

    def __init__(
        self,
        classes: int = 1,
        filters: Sequence[int] = (32, 64, 128, 256),
        max_filter: int = 512,
        base_ksize: int | Sequence[int] = 3,
        dilation: int | Sequence[int] = 1,
        full_decoder: bool = False,
        in_channels: int = 3,
        input_scale: float = 1.0,
    ):
        super().__init__()
        check_at_least(
            "sharp_unet", 1, classes=classes, max_filter=max_filter, in_channels=in_channels
        )
        check_filters("sharp_unet", filters=filters)
        kernel = _read_pair("base_ksize", base_ksize)
        dilations = _read_pair("dilation", dilation)

        self.stride = 2 ** len(filters)
        self.scale = InputScale(input_scale)
        self.encoder = nn.ModuleList()
        channels = in_channels
        for count in (*filters, max_filter):
            self.encoder.append(ConvPair(channels, count, kernel, dilations))
            channels = count
        # From here on lists start at the bottom.
        self.upsample = nn.ModuleList()
        self.sharpen = nn.ModuleList()
        self.decoder = nn.ModuleList()
        for level in reversed(range(len(filters))):
            count = filters[level]
            self.upsample.append(nn.ConvTranspose2d(channels, count, 2, stride=2))
            self.sharpen.append(Sharpening(count))
            channels = 2 * count
            if full_decoder or level == 0:
                self.decoder.append(ConvPair(channels, count, kernel, dilations))
                channels = count
            else:
                self.decoder.append(nn.Identity())  # the baseline's bug
        self.head = nn.Conv2d(channels, classes, 1)
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
        for step, skip in enumerate(reversed(skips)):
            upsampled = self.upsample[step](features)
            sharpened = self.sharpen[step](skip)
            features = self.decoder[step](torch.cat([upsampled, sharpened], dim=1))
        return crop_to_image(self.head(features), image)

    def keras_layers(self) -> Iterator[tuple[str, nn.Module]]:
        yield from keras_layers_of(*self.encoder)
        for upsample, sharpen, block in zip(self.upsample, self.sharpen, self.decoder, strict=True):
            yield "conv2d_transpose", upsample
            yield "depthwise_conv2d", sharpen
            if isinstance(block, ConvPair):
                yield from block.keras_layers()
        yield "conv2d", self.head


def _read_pair(name: str, value: int | Sequence[int]) -> tuple[int, int]:
    """A number twice, or the two numbers that are given."""
    pair = (value, value) if isinstance(value, int) else tuple(value)
    if len(pair) != 2 or min(pair) < 1:
        raise InputError(f"sharp_unet: {name} is {value}, expected one number or two, at least 1.")
    return pair
