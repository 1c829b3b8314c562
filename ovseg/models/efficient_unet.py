"""The baseline's EfficientUNet: an EfficientNet encoder and a decoder of residual blocks (CBAR)."""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ovseg.models.checks import check_at_least, check_rate
from ovseg.models.efficientnet import LAST_BLOCK, KerasEfficientNet, keras_names
from ovseg.models.layers import (
    InputScale,
    PortedModule,
    batch_norm,
    crop_to_image,
    init_glorot,
    keras_layers_of,
    pad_to_stride,
)

# Blocks whose maps are skip connections; of those in BRANCH_SKIPS before the shortcut is added.
TOP_SKIP = "block1a"
BRANCH_SKIPS = ("block2b", "block3b", "block5c")
SKIPS = (TOP_SKIP, *BRANCH_SKIPS, LAST_BLOCK)


class EfficientNetEncoder(KerasEfficientNet):
    """EfficientNet from the pixels to block 7a, with the maps that the baseline skips from.

    Keras' `block2b_drop` is a block's own branch, after drop-connect and before the shortcut is
    added.

    The arguments are those of `KerasEfficientNet`.
    """

    def __init__(self, efficientnet: str, drop_connect_rate: float, imagenet_rescaling: bool):
        super().__init__(efficientnet, drop_connect_rate, imagenet_rescaling)
        for name in BRANCH_SKIPS:
            # `forward` adds the shortcut, after it has taken the branch.
            block: Any = self.blocks[name]
            block.has_skip = False

    @property
    def channels(self) -> list[int]:
        """The number of channels of every map that `forward` returns."""
        norms: list[Any] = [keras_names(self.blocks[name])["project_bn"] for name in SKIPS]
        return [norm.num_features for norm in norms]

    def forward(self, image: Tensor) -> list[Tensor]:
        """Pixels 0..255 -> maps at 1/2, 1/4, 1/8, 1/16 and 1/32 of their size."""
        features = self.embed(image)
        maps = []
        block: Any  # a block of timm's
        for name, block in self.blocks.items():
            if name in BRANCH_SKIPS:
                branch = block.drop_path(block(features))
                maps.append(branch)
                features = branch + features
                continue
            features = block(features)
            if name in (TOP_SKIP, LAST_BLOCK):
                maps.append(features)
        return maps


class CbarBlock(PortedModule):
    """Convolution, batch normalisation, ReLU, twice, plus a 1 x 1 convolution of the input."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.norm1 = batch_norm(out_channels)
        self.norm2 = batch_norm(out_channels)
        self.shortcut = nn.Conv2d(in_channels, out_channels, 1)
        init_glorot(self)

    def forward(self, features: Tensor) -> Tensor:
        branch = F.relu(self.norm1(self.conv1(features)))
        branch = F.relu(self.norm2(self.conv2(branch)))
        return branch + self.shortcut(features)

    def keras_layers(self) -> Iterator[tuple[str, nn.Module]]:
        yield "conv2d", self.conv1
        yield "conv2d", self.conv2
        yield "conv2d", self.shortcut
        yield "batch_normalization", self.norm1
        yield "batch_normalization", self.norm2


class EfficientUNet(PortedModule):
    """EfficientNet encoder and CBAR decoder (TensorflowEfficientUNet of the baseline).

    Upsampling is by nearest neighbour. The decoder's last block gets the pixels themselves, 0..255;
    the encoder divides them by 255. The baseline starts from ImageNet's weights, this class from
    random ones; a trained Keras file provides its own.

    Args:
        classes: output channels.
        efficientnet: the encoder, B0..B7.
        drop_connect_rate: probability of leaving a sample out of the deepest block, 0 to below 1;
            Keras' is 0.2.
        imagenet_rescaling: divide the normalised pixels by the root of ImageNet's deviations, as
            Keras' graph for ImageNet's weights does
            (https://github.com/tensorflow/tensorflow/issues/49930); `ovseg import_baseline` finds
            out whether a file needs it.
        input_scale: factor on the pixels: 1 feeds 0..255 as the baseline does.

    Raises:
        InputError: a value that gives no network.
    """

    stride = 32

    def __init__(
        self,
        classes: int = 1,
        efficientnet: str = "B0",
        drop_connect_rate: float = 0.2,
        imagenet_rescaling: bool = False,
        input_scale: float = 1.0,
    ):
        super().__init__()
        check_at_least("efficient_unet", 1, classes=classes)
        check_rate("efficient_unet", drop_connect_rate=drop_connect_rate)
        self.scale = InputScale(input_scale)
        self.encoder = EfficientNetEncoder(efficientnet, drop_connect_rate, imagenet_rescaling)
        *skips, deepest = self.encoder.channels
        self.bottleneck = CbarBlock(deepest, deepest)
        # From the deepest level up; the last block has as many filters as the one before.
        filters = [*reversed(skips), skips[0]]
        skip_channels = [*reversed(skips), 3]  # the last skip is the image
        self.decoder = nn.ModuleList()
        channels = deepest
        for count, of_skip in zip(filters, skip_channels, strict=True):
            self.decoder.append(CbarBlock(channels + of_skip, count))
            channels = count
        self.head = nn.Conv2d(channels, classes, 1)
        init_glorot(self.head)

    def forward(self, image: Tensor) -> Tensor:
        """Predict logits.

        Args:
            image: plain pixels, uint8 or float (N, 3, H, W), 0..255 RGB, any size.

        Returns:
            (N, classes, H, W).
        """
        pixels = pad_to_stride(self.scale(image), self.stride)
        *skips, deepest = self.encoder(pixels)
        features = self.bottleneck(deepest)
        for block, skip in zip(self.decoder, [*reversed(skips), pixels], strict=True):
            features = F.interpolate(features, scale_factor=2, mode="nearest")
            features = block(torch.cat([features, skip], dim=1))
        return crop_to_image(self.head(features), image)

    def keras_layers(self) -> Iterator[tuple[str, nn.Module]]:
        yield from keras_layers_of(self.encoder, self.bottleneck, *self.decoder)
        yield "conv2d", self.head
