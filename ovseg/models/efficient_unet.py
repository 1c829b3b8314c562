"""The baseline's EfficientUNet: an EfficientNet encoder and a decoder of residual blocks (CBAR)."""

from collections.abc import Iterable, Iterator
from string import ascii_lowercase
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.data import IMAGENET_DEFAULT_STD
from torch import Tensor, nn

from ovseg.core.registry import choose
from ovseg.models.checks import check_at_least, check_rate
from ovseg.models.layers import (
    KERAS_EPSILON,
    KERAS_MOMENTUM,
    InputScale,
    PortedModule,
    batch_norm,
    crop_to_image,
    init_glorot,
    init_he_normal_,
    keras_layers_of,
    pad_to_stride,
    zero_bias,
)

ENCODERS = {f"B{number}": f"tf_efficientnet_b{number}" for number in range(8)}

# Blocks whose maps are skip connections; of those in BRANCH_SKIPS before the shortcut is added.
TOP_SKIP = "block1a"
BRANCH_SKIPS = ("block2b", "block3b", "block5c")
LAST_BLOCK = "block7a"
SKIPS = (TOP_SKIP, *BRANCH_SKIPS, LAST_BLOCK)

# Keras' name of a block's layer -> timm's.
NAMES_WITHOUT_EXPANSION = {
    "dwconv": "conv_dw",
    "bn": "bn1",
    "se_reduce": "se.conv_reduce",
    "se_expand": "se.conv_expand",
    "project_conv": "conv_pw",
    "project_bn": "bn2",
}
NAMES_WITH_EXPANSION = {
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
    """Keras' Normalization: (x - mean) / standard deviation of each channel.

    Nothing here learns the numbers: they are 0 and 1 until a Keras file provides others.
    """

    mean: Tensor
    variance: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(3))
        self.register_buffer("variance", torch.ones(3))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def forward(self, image: Tensor) -> Tensor:
        std = self.variance.sqrt().clamp(min=1e-7)  # as Keras, for a constant channel
        return (image - self.mean.view(1, -1, 1, 1)) / std.view(1, -1, 1, 1)

    def keras_parts(self) -> dict[str, Tensor]:
        """The parts with weights by their Keras names, see `ovseg.baseline.keras_weights`."""
        return {"mean": self.mean, "variance": self.variance, "count": self.count}


class EfficientNetEncoder(PortedModule):
    """EfficientNet from the pixels to block 7a, made of timm's blocks.

    timm's `tf_efficientnet_*` computes what Keras computes: "same" padding that depends on the
    input's parity, Swish, squeezes counted on a block's input, drop-connect that grows from block
    to block and leaves out whole samples. Only the constants of batch normalisation are set here.
    Keras' scaling inside the network and its skip connections are added: Keras' `block2b_drop` is a
    block's own branch, after drop-connect and before the shortcut is added. What follows block 7a
    (7b and later in B1..B7, the head) is not part of the network, but drop-connect counts its
    blocks.

    Args:
        efficientnet: B0..B7.
        drop_connect_rate: of the last block of the whole EfficientNet; block i of n has i / n of
            it.
        imagenet_rescaling: divide by the root of ImageNet's deviations, as Keras does with
            ImageNet's weights.
    """

    def __init__(self, efficientnet: str, drop_connect_rate: float, imagenet_rescaling: bool):
        super().__init__()
        name = choose("efficientnet", efficientnet, ENCODERS)
        network: Any = timm.create_model(
            name,
            pretrained=False,
            drop_path_rate=drop_connect_rate,
            bn_eps=KERAS_EPSILON,
            bn_momentum=KERAS_MOMENTUM,
        )
        std: tuple[float, ...] = (1.0,)
        if imagenet_rescaling:
            std = tuple(value**0.5 for value in IMAGENET_DEFAULT_STD)
        self.rescaling = InputScale(1 / 255)
        self.normalization = PixelNormalization()
        self.imagenet_rescaling = InputScale(1.0, std=std)
        self.stem_conv = network.conv_stem
        self.stem_bn = network.bn1
        self.blocks = nn.ModuleDict(dict(_named_blocks(network.blocks)))
        for name in BRANCH_SKIPS:
            # `forward` adds the shortcut, after it has taken the branch.
            block: Any = self.blocks[name]
            block.has_skip = False
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                _init_conv(module)

    @property
    def channels(self) -> list[int]:
        """The number of channels of every map that `forward` returns."""
        norms: list[Any] = [_keras_names(self.blocks[name])["project_bn"] for name in SKIPS]
        return [norm.num_features for norm in norms]

    def forward(self, image: Tensor) -> list[Tensor]:
        """Pixels 0..255 -> maps at 1/2, 1/4, 1/8, 1/16 and 1/32 of their size."""
        pixels = self.imagenet_rescaling(self.normalization(self.rescaling(image)))
        features = self.stem_bn(self.stem_conv(pixels))
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

    def keras_layers(self) -> Iterator[tuple[str, nn.Module]]:
        yield "normalization", self.normalization
        yield "stem_conv", self.stem_conv
        yield "stem_bn", self.stem_bn
        for name, block in self.blocks.items():
            for layer, module in _keras_names(block).items():
                yield f"{name}_{layer}", module


def _named_blocks(stages: Iterable[nn.Sequential]) -> Iterator[tuple[str, nn.Module]]:
    """timm's blocks by Keras' names, from block1a to the last that the network uses."""
    for number, stage in enumerate(stages, start=1):
        for letter, block in zip(ascii_lowercase, stage, strict=False):
            name = f"block{number}{letter}"
            yield name, block
            if name == LAST_BLOCK:
                return


def _keras_names(block: nn.Module) -> dict[str, nn.Module]:
    """A block's layers with weights by Keras' names."""
    expands = hasattr(block, "conv_pwl")
    names = NAMES_WITH_EXPANSION if expands else NAMES_WITHOUT_EXPANSION
    return {keras: block.get_submodule(ours) for keras, ours in names.items()}


def _init_conv(conv: nn.Conv2d) -> None:
    """He-normal by fan-out, where a depthwise kernel counts once; zero biases."""
    is_depthwise = conv.groups > 1
    init_he_normal_(conv.weight if is_depthwise else conv.weight.transpose(0, 1))
    zero_bias(conv)


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
            (https://github.com/tensorflow/tensorflow/issues/49930). A weights file does not say
            whether it needs this; one that the baseline trained from `weights="imagenet"` in
            TensorFlow 2.10 or later does.
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
