"""The baseline's UNet on an EfficientNet-B7 whose weights stay as they are."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ovseg.models.checks import check_at_least, check_rate
from ovseg.models.efficientnet import LAST_BLOCK, KerasEfficientNet, keras_names, run_in_parts
from ovseg.models.layers import (
    ConvNorm,
    InputScale,
    PortedModule,
    crop_to_image,
    init_glorot,
    init_he_normal,
    keras_layers_of,
    pad_to_stride,
)

SKIPS = ("block1a", "block2a", "block3a", "block4a")
FILTERS = (512, 256, 128, 64, 32)  # of the decoder, the lowest level first


class WideEncoder(KerasEfficientNet):
    """An EfficientNet up to the depthwise convolution of block 7a.

    A quirk of the baseline: maps are taken inside the blocks, from the wide map that the depthwise
    convolution makes, so that squeeze, excitation and projection of block 7a are not in the
    network.

    The arguments are those of `KerasEfficientNet`.
    """

    def __init__(
        self,
        efficientnet: str,
        drop_connect_rate: float,
        imagenet_rescaling: bool,
        weights: str | None,
    ):
        super().__init__(efficientnet, drop_connect_rate, imagenet_rescaling, weights)
        last = keras_names(self.blocks.pop(LAST_BLOCK))
        self.bridge = nn.ModuleDict()
        for name in ("expand_conv", "expand_bn", "dwconv", "bn"):
            self.bridge[name] = last[name]
        self.frozen = False

    @property
    def channels(self) -> list[int]:
        """The number of channels of every map that `forward` returns."""
        norms: list[Any] = [keras_names(self.blocks[name])["bn"] for name in SKIPS]
        norms.append(self.bridge["bn"])
        return [norm.num_features for norm in norms]

    def forward(self, image: Tensor) -> list[Tensor]:
        """Pixels 0..255 -> maps at 1/2, 1/4, 1/8, 1/16 and 1/32 of their size."""
        features = self.embed(image)
        maps = []
        for name, block in self.blocks.items():
            if name in SKIPS:
                _, wide, features = run_in_parts(block, features)
                maps.append(wide)
            else:
                features = block(features)
        for layer in self.bridge.values():
            features = layer(features)
        return [*maps, features]

    def keras_layers(self) -> Iterator[tuple[str, nn.Module]]:
        yield from super().keras_layers()
        for layer, module in self.bridge.items():
            yield f"{LAST_BLOCK}_{layer}", module

    def freeze(self) -> None:
        """Let nothing but the layers of block 7a train, as in the baseline.

        The other norms use their moving statistics in training too; drop-connect stays on.
        """
        self.frozen = True
        self.requires_grad_(False)
        self.bridge.requires_grad_(True)

    def train(self, mode: bool = True) -> "WideEncoder":
        super().train(mode)
        if self.frozen:
            for module in (self.stem_bn, *self.blocks.modules()):
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()
        return self


class DecoderLevel(PortedModule):
    """A transposed convolution, the skip connection, and two `ConvNorm`s."""

    def __init__(self, in_channels: int, skip_channels: int, channels: int):
        super().__init__()
        self.upsample = nn.ConvTranspose2d(in_channels, channels, 2, stride=2)
        self.first = ConvNorm(channels + skip_channels, channels)
        self.second = ConvNorm(channels, channels)

    def forward(self, features: Tensor, skip: Tensor) -> Tensor:
        joined = torch.cat([self.upsample(features), skip], dim=1)
        return self.second(self.first(joined))

    def keras_layers(self) -> Iterator[tuple[str, nn.Module]]:
        yield "conv2d_transpose", self.upsample
        yield from keras_layers_of(self.first, self.second)


class EfficientNetB7UNet(PortedModule):
    """UNet on an EfficientNet-B7 (TensorflowEfficientNetB7UNet of the baseline).

    The last skip connection is the image itself, 0..255; the encoder divides it by 255. The
    baseline starts from ImageNet's weights and trains the decoder and the first layers of block 7a
    alone: 15,756,193 of its 56,725,112 numbers. From random weights set `freeze_encoder` to false.

    Args:
        classes: output channels; the baseline's network has one whatever its configuration says.
        efficientnet: the encoder, B0..B7; the baseline's is B7.
        drop_connect_rate: probability of leaving a sample out of the deepest block, 0 to below 1;
            Keras' is 0.2.
        imagenet_rescaling: divide the normalised pixels by the root of ImageNet's deviations, as
            Keras 2.9 and later do with ImageNet's weights.
        freeze_encoder: train nothing of the encoder but `block7a_expand_conv`, `_expand_bn`,
            `_dwconv` and `_bn`.
        encoder_weights: one of
            - null for random ones;
            - `imagenet`, which is downloaded: Keras' own weights, from timm;
            - the path of timm's state dict of `tf_efficientnet_b7` (b0..b6) (.pth, .pt,
              .safetensors).
        input_scale: factor on the pixels: 1 feeds 0..255 as the baseline does.

    Raises:
        InputError: a value that gives no network, or weights that can't be downloaded or read.
    """

    stride = 32

    def __init__(
        self,
        classes: int = 1,
        efficientnet: str = "B7",
        drop_connect_rate: float = 0.2,
        imagenet_rescaling: bool = True,
        freeze_encoder: bool = True,
        encoder_weights: str | None = None,
        input_scale: float = 1.0,
    ):
        super().__init__()
        check_at_least("efficientnet_b7_unet", 1, classes=classes)
        check_rate("efficientnet_b7_unet", drop_connect_rate=drop_connect_rate)
        self.scale = InputScale(input_scale)
        self.encoder = WideEncoder(
            efficientnet, drop_connect_rate, imagenet_rescaling, encoder_weights
        )
        if freeze_encoder:
            self.encoder.freeze()
        *skips, channels = self.encoder.channels
        skip_channels = [*reversed(skips), 3]  # the last skip is the image
        self.decoder = nn.ModuleList()
        for count, of_skip in zip(FILTERS, skip_channels, strict=True):
            self.decoder.append(DecoderLevel(channels, of_skip, count))
            channels = count
        self.head = nn.Conv2d(channels, classes, 1)
        init_he_normal(self.decoder)
        init_glorot(self.head)

    def forward(self, image: Tensor) -> Tensor:
        """Predict logits.

        Args:
            image: plain pixels, uint8 or float (N, 3, H, W), 0..255 RGB, any size.

        Returns:
            (N, classes, H, W).
        """
        pixels = pad_to_stride(self.scale(image), self.stride)
        *skips, features = self.encoder(pixels)
        for level, skip in zip(self.decoder, [*reversed(skips), pixels], strict=True):
            features = level(features, skip)
        return crop_to_image(self.head(features), image)

    def keras_layers(self) -> Iterator[tuple[str, nn.Module]]:
        yield from keras_layers_of(self.encoder, *self.decoder)
        yield "conv2d", self.head
