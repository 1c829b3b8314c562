"""The baseline's EfficientUNet: an EfficientNet encoder and a decoder of residual convolution blocks (CBAR)."""

from collections.abc import Iterator
from string import ascii_lowercase

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ovseg.core.errors import InputError
from ovseg.core.registry import choose
from ovseg.models.layers import InputScale, init_he_normal_, pad_to_stride
from ovseg.models.unet import BATCH_NORM

ENCODERS = {f"B{i}": f"tf_efficientnet_b{i}" for i in range(8)}
IMAGENET_STD = (0.229, 0.224, 0.225)
BRANCH_SKIPS = (
    "block2b",
    "block3b",
    "block5c",
)  # skips taken from these blocks before their shortcut is added
TOP_SKIP, LAST_BLOCK = "block1a", "block7a"
PLAIN_NAMES = {  # Keras' name of a layer of a block without expansion -> timm's
    "dwconv": "conv_dw",
    "bn": "bn1",
    "se_reduce": "se.conv_reduce",
    "se_expand": "se.conv_expand",
    "project_conv": "conv_pw",
    "project_bn": "bn2",
}
EXPANDED_NAMES = {
    "expand_conv": "conv_pw",
    "expand_bn": "bn1",
    "dwconv": "conv_dw",
    "bn": "bn2",
    "se_reduce": "se.conv_reduce",
    "se_expand": "se.conv_expand",
    "project_conv": "conv_pwl",
    "project_bn": "bn3",
}


class PixelNormalization(nn.Module):
    """Keras' Normalization: (x - mean) / standard deviation of each channel, of a data set that Keras was shown.

    Nothing here learns the numbers: they are 0 and 1 until a Keras file brings others.
    """

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(3))
        self.register_buffer("variance", torch.ones(3))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def forward(self, image: Tensor) -> Tensor:
        std = self.variance.sqrt().clamp(min=1e-7)  # Keras' own guard against a constant channel
        return (image - self.mean.view(1, -1, 1, 1)) / std.view(1, -1, 1, 1)

    def keras_parts(self) -> dict[str, Tensor]:
        """See `ovseg.baseline.keras_weights.keras_targets`."""
        return {"mean": self.mean, "variance": self.variance, "count": self.count}


class EfficientNetEncoder(nn.Module):
    """EfficientNet from the pixels to block 7a, of timm's blocks.

    timm's `tf_efficientnet_*` computes what Keras computes: "same" padding that follows the input's parity, Swish,
    squeezes counted on a block's input, drop-connect that grows with the blocks and leaves out whole samples. Only
    batch normalisation's constants are given by hand. Added to timm's are Keras' scaling inside the network and the
    skips: Keras' `block2b_drop` is a block's own branch, after drop-connect and before the shortcut is added. What
    follows block 7a (7b and on in B1..B7, the head) is no part of the network, though drop-connect counts its blocks.

    Args:
        efficientnet: B0..B7.
        drop_connect_rate: of the last block of the whole EfficientNet; block i of n drops i/n of it.
        imagenet_rescaling: divide by the root of ImageNet's deviations, as Keras does with ImageNet's weights.
    """

    def __init__(self, efficientnet: str, drop_connect_rate: float, imagenet_rescaling: bool):
        super().__init__()
        name = choose("efficientnet", efficientnet, ENCODERS)
        constants = {f"bn_{key}": value for key, value in BATCH_NORM.items()}
        network = timm.create_model(
            name, pretrained=False, drop_path_rate=drop_connect_rate, **constants
        )
        std = tuple(value**0.5 for value in IMAGENET_STD) if imagenet_rescaling else (1.0,)
        self.rescaling, self.normalization = InputScale(1 / 255), PixelNormalization()
        self.imagenet_rescaling = InputScale(1.0, std=std)
        self.stem_conv, self.stem_bn = network.conv_stem, network.bn1
        self.blocks = nn.ModuleDict(_blocks(network.blocks))
        for block in BRANCH_SKIPS:
            self.blocks[
                block
            ].has_skip = False  # `forward` adds the shortcut, after it has taken the branch
        for conv in self.modules():
            if isinstance(conv, nn.Conv2d):
                _init_conv(conv)

    @property
    def channels(self) -> list[int]:
        """Of every map that `forward` returns."""
        return [
            _keras_layers_of(self.blocks[name])["project_bn"].num_features for name in _skip_names()
        ]

    def forward(self, image: Tensor) -> list[Tensor]:
        """Pixels 0..255 -> maps at 1/2, 1/4, 1/8, 1/16 and 1/32 of their size."""
        features = self.imagenet_rescaling(self.normalization(self.rescaling(image)))
        features = self.stem_bn(self.stem_conv(features))
        maps = []
        for name, block in self.blocks.items():
            if name in BRANCH_SKIPS:
                maps.append(block.drop_path(block(features)))
                features = maps[-1] + features
            else:
                features = block(features)
                if name in (TOP_SKIP, LAST_BLOCK):
                    maps.append(features)
        return maps

    def keras_layers(self) -> Iterator[tuple[str, nn.Module]]:
        """See `ovseg.baseline.keras_weights`."""
        yield from (
            ("normalization", self.normalization),
            ("stem_conv", self.stem_conv),
            ("stem_bn", self.stem_bn),
        )
        for name, block in self.blocks.items():
            for layer, module in _keras_layers_of(block).items():
                yield f"{name}_{layer}", module


def _skip_names() -> tuple[str, ...]:
    return (TOP_SKIP, *BRANCH_SKIPS, LAST_BLOCK)


def _blocks(stages: nn.Sequential) -> Iterator[tuple[str, nn.Module]]:
    """timm's blocks by Keras' names, block1a and on, up to the last that the network uses."""
    for number, stage in enumerate(stages, start=1):
        for letter, block in zip(ascii_lowercase, stage, strict=False):
            name = f"block{number}{letter}"
            yield name, block
            if name == LAST_BLOCK:
                return


def _keras_layers_of(block: nn.Module) -> dict[str, nn.Module]:
    """A block's layers with weights by Keras' names."""
    names = EXPANDED_NAMES if hasattr(block, "conv_pwl") else PLAIN_NAMES
    return {keras: block.get_submodule(ours) for keras, ours in names.items()}


def _init_conv(conv: nn.Conv2d) -> None:
    """He-normal by fan-out, where a depthwise kernel counts once; zero biases."""
    init_he_normal_(conv.weight if conv.groups > 1 else conv.weight.transpose(0, 1))
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)


class CbarBlock(nn.Module):
    """Convolution, batch normalisation, ReLU, twice, plus a 1 x 1 convolution of the input."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.norm1 = nn.BatchNorm2d(out_channels, **BATCH_NORM)
        self.norm2 = nn.BatchNorm2d(out_channels, **BATCH_NORM)
        self.shortcut = nn.Conv2d(in_channels, out_channels, 1)
        for conv in (self.conv1, self.conv2, self.shortcut):
            nn.init.xavier_uniform_(conv.weight)
            nn.init.zeros_(conv.bias)

    def forward(self, features: Tensor) -> Tensor:
        branch = F.relu(self.norm1(self.conv1(features)))
        return F.relu(self.norm2(self.conv2(branch))) + self.shortcut(features)

    def keras_layers(self) -> Iterator[tuple[str, nn.Module]]:
        """See `ovseg.baseline.keras_weights`."""
        yield from (("conv2d", conv) for conv in (self.conv1, self.conv2, self.shortcut))
        yield from (("batch_normalization", norm) for norm in (self.norm1, self.norm2))


class EfficientUNet(nn.Module):
    """EfficientNet encoder, CBAR decoder with nearest upsampling (TensorflowEfficientUNet of the baseline).

    The decoder's last block sees the pixels themselves, 0..255; the encoder divides them by 255. Where the baseline
    starts from ImageNet's weights, this class starts from random ones; a trained Keras file brings its own.

    Args:
        classes: output channels.
        efficientnet: the encoder, B0..B7.
        drop_connect_rate: probability of leaving a sample out of the deepest block, 0 to below 1; Keras' is 0.2.
        imagenet_rescaling: divide the normalised pixels by the root of ImageNet's deviations, as Keras' graph for
            ImageNet's weights does (https://github.com/tensorflow/tensorflow/issues/49930). A weights file does not
            tell; one that the baseline trained from `weights="imagenet"` in TensorFlow 2.10 or later needs it.
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
        _check(classes, drop_connect_rate)
        self.scale = InputScale(input_scale)
        self.encoder = EfficientNetEncoder(efficientnet, drop_connect_rate, imagenet_rescaling)
        *skips, deepest = self.encoder.channels
        self.bottleneck = CbarBlock(deepest, deepest)
        filters = [deepest, *reversed(skips), skips[0]]
        skips = [*reversed(skips), 3]  # the last skip is the image
        self.decoder = nn.ModuleList(
            CbarBlock(below + skip, above)
            for below, skip, above in zip(filters[:-1], skips, filters[1:], strict=True)
        )
        self.head = nn.Conv2d(filters[-1], classes, 1)
        nn.init.xavier_uniform_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, image: Tensor) -> Tensor:
        """Plain pixels, uint8 or float (N, 3, H, W), 0..255 RGB, any size -> logits (N, classes, H, W)."""
        pixels = pad_to_stride(self.scale(image), self.stride)
        *skips, features = self.encoder(pixels)
        features = self.bottleneck(features)
        for block, skip in zip(self.decoder, [*reversed(skips), pixels], strict=True):
            features = F.interpolate(features, scale_factor=2, mode="nearest")
            features = block(torch.cat([features, skip], dim=1))
        return self.head(features)[..., : image.shape[-2], : image.shape[-1]]

    def keras_layers(self) -> Iterator[tuple[str, nn.Module]]:
        """Pairs of a Keras name and a module in Keras' order of creation, see `ovseg.baseline.keras_weights`."""
        yield from self.encoder.keras_layers()
        for block in (self.bottleneck, *self.decoder):
            yield from block.keras_layers()
        yield "conv2d", self.head


def _check(classes: int, drop_connect_rate: float) -> None:
    if classes < 1:
        raise InputError(f"efficient_unet: classes is {classes}, expected at least 1.")
    if not 0 <= drop_connect_rate < 1:
        raise InputError(
            f"efficient_unet: drop_connect_rate is {drop_connect_rate}, expected 0 to below 1."
        )
