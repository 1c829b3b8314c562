"""Keras' EfficientNet, made of timm's blocks, for the encoders of the baseline."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from string import ascii_lowercase
from typing import Any

import timm
import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn

from ovseg.core.errors import InputError
from ovseg.core.registry import choose
from ovseg.models.encoder_weights import describe_mismatch, read_state
from ovseg.models.layers import (
    KERAS_EPSILON,
    KERAS_MOMENTUM,
    InputScale,
    PortedModule,
    init_he_normal_,
    zero_bias,
)

ENCODERS = {f"B{number}": f"tf_efficientnet_b{number}" for number in range(8)}

KERAS_DROP_CONNECT = 0.2  # Keras' default rate
LAST_BLOCK = "block7a"  # the last of the baseline's own networks
# Blocks whose expansions keras-unet-collection takes; each halves the size behind its expansion.
EXPANDED_BLOCKS = ("block2a", "block3a", "block4a", "block6a")

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

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("variance", torch.ones(channels))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def forward(self, image: Tensor) -> Tensor:
        std = self.variance.sqrt().clamp(min=1e-7)  # as Keras, for a constant channel
        return (image - self.mean.view(1, -1, 1, 1)) / std.view(1, -1, 1, 1)

    def keras_parts(self) -> dict[str, Tensor]:
        """The parts with weights by their Keras names, see `ovseg.baseline.keras_weights`."""
        return {"mean": self.mean, "variance": self.variance, "count": self.count}


class KerasEfficientNet(PortedModule):
    """Stem and blocks of an EfficientNet; a subclass says which maps it gives.

    timm's `tf_efficientnet_*` computes what Keras computes: "same" padding that depends on the
    input's parity, Swish, squeezes counted on a block's input, drop-connect that grows from block
    to block and leaves out whole samples. Only the constants of batch normalisation are set here,
    and Keras' scaling inside the network is added. What follows the last block is not part of the
    network, but drop-connect counts its blocks.

    Args:
        efficientnet: B0..B7.
        drop_connect_rate: of the last block of the whole EfficientNet; block i of n has i / n of
            it.
        imagenet_rescaling: divide by the root of ImageNet's deviations, as Keras does with
            ImageNet's weights.
        weights: see `create_timm`; None for random ones.
        last_block: by its Keras name; None for all blocks and the top convolution.
        in_channels: of the image; `imagenet_rescaling` is for 3 only.
    """

    def __init__(
        self,
        efficientnet: str,
        drop_connect_rate: float,
        imagenet_rescaling: bool,
        weights: str | None = None,
        last_block: str | None = LAST_BLOCK,
        in_channels: int = 3,
    ):
        super().__init__()
        name = choose("efficientnet", efficientnet, ENCODERS)
        network: Any = create_timm(name, drop_connect_rate, weights, in_channels)
        std: tuple[float, ...] = (1.0,)
        if imagenet_rescaling:
            std = tuple(value**0.5 for value in IMAGENET_DEFAULT_STD)
        self.rescaling = InputScale(1 / 255)
        self.normalization = PixelNormalization(in_channels)
        self.imagenet_rescaling = InputScale(1.0, std=std)
        self.stem_conv = network.conv_stem
        self.stem_bn = network.bn1
        self.blocks = nn.ModuleDict(dict(_named_blocks(network.blocks, last_block)))
        self.last = nn.ModuleDict()
        if last_block is None:
            self.last["top_conv"] = network.conv_head
            self.last["top_bn"] = network.bn2
        if weights is not None:
            # Keras has the deviations in the place of variances, which the rescaling mends.
            self.normalization.mean.copy_(torch.tensor(IMAGENET_DEFAULT_MEAN))
            self.normalization.variance.copy_(torch.tensor(IMAGENET_DEFAULT_STD))
            return
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                _init_conv(module)

    def embed(self, image: Tensor) -> Tensor:
        """Pixels 0..255 -> the stem's map at half their size."""
        pixels = self.imagenet_rescaling(self.normalization(self.rescaling(image)))
        return self.stem_bn(self.stem_conv(pixels))

    def keras_layers(self) -> Iterator[tuple[str, nn.Module]]:
        yield "normalization", self.normalization
        yield "stem_conv", self.stem_conv
        yield "stem_bn", self.stem_bn
        for name, block in self.blocks.items():
            for layer, module in keras_names(block).items():
                yield f"{name}_{layer}", module
        yield from self.last.items()


class ExpansionEncoder(KerasEfficientNet):
    """An EfficientNet with the maps that keras-unet-collection takes from it.

    They are the wide `..._expand_activation` inside the blocks 2a, 3a, 4a and 6a, and
    `top_activation`.

    Args:
        efficientnet: B0..B7.
        maps: number of maps, 1 to 5; what follows the last is left out.
        in_channels: of the image.
        imagenet_rescaling: see `KerasEfficientNet`.
    """

    def __init__(self, efficientnet: str, maps: int, in_channels: int, imagenet_rescaling: bool):
        names = EXPANDED_BLOCKS[:maps]
        is_whole = maps > len(EXPANDED_BLOCKS)
        super().__init__(
            efficientnet,
            KERAS_DROP_CONNECT,
            imagenet_rescaling,
            last_block=None if is_whole else names[-1],
            in_channels=in_channels,
        )
        if not is_whole:
            layers = keras_names(self.blocks.pop(names[-1]))
            for layer in ("expand_conv", "expand_bn"):
                self.last[f"{names[-1]}_{layer}"] = layers[layer]
        norms: list[Any] = []
        for name in EXPANDED_BLOCKS:
            if name in self.blocks:
                norms.append(keras_names(self.blocks[name])["expand_bn"])
        norms.append(list(self.last.values())[-1])
        self.channels = [norm.num_features for norm in norms]

    def forward(self, image: Tensor) -> list[Tensor]:
        """Pixels 0..255 -> maps at 1/2, 1/4, ... of their size."""
        features = self.embed(image)
        maps = []
        for name, block in self.blocks.items():
            if name in EXPANDED_BLOCKS:
                expanded, _, features = run_in_parts(block, features)
                maps.append(expanded)
            else:
                features = block(features)
        for layer in self.last.values():
            features = layer(features)
        return [*maps, features]


def create_timm(
    name: str, drop_connect_rate: float, weights: str | None, in_channels: int = 3
) -> nn.Module:
    """timm's EfficientNet with Keras' constants of batch normalisation.

    Args:
        name: `tf_efficientnet_b0` .. `tf_efficientnet_b7`.
        drop_connect_rate: of the last block.
        weights: `imagenet`, which is downloaded: those that Keras has, by timm; or the path of
            timm's state dict of that network (.pth, .pt, .safetensors); None for random ones.
        in_channels: of the image.

    Raises:
        InputError: weights that can't be downloaded, read or loaded.
    """
    try:
        network = timm.create_model(
            name,
            pretrained=weights == "imagenet",
            in_chans=in_channels,
            drop_path_rate=drop_connect_rate,
            bn_eps=KERAS_EPSILON,
            bn_momentum=KERAS_MOMENTUM,
        )
    except OSError as error:  # the hub's errors are OSErrors
        raise InputError(
            f"Cannot download the weights of {name} ({type(error).__name__}). Check the "
            "connection, or set encoder_weights to null or to a file."
        ) from error
    if weights is None or weights == "imagenet":
        return network
    state = read_state(Path(weights))
    wanted = network.state_dict()
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise InputError(
            f"encoder_weights {weights} is not of timm's {name}. "
            f"{describe_mismatch(state, wanted)} Use a state dict of {name}."
        ) from error
    return network


def _named_blocks(
    stages: Iterable[nn.Sequential], last_block: str | None
) -> Iterator[tuple[str, nn.Module]]:
    """timm's blocks by Keras' names, from block1a to the last that the network uses."""
    for number, stage in enumerate(stages, start=1):
        for letter, block in zip(ascii_lowercase, stage, strict=False):
            name = f"block{number}{letter}"
            yield name, block
            if name == last_block:
                return


def keras_names(block: nn.Module) -> dict[str, nn.Module]:
    """A block's layers with weights by Keras' names."""
    expands = hasattr(block, "conv_pwl")
    names = NAMES_WITH_EXPANSION if expands else NAMES_WITHOUT_EXPANSION
    return {keras: block.get_submodule(ours) for keras, ours in names.items()}


def run_in_parts(block: nn.Module, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A block without shortcut, with what it computes on the way.

    Returns:
        The expanded map (Keras' `..._expand_activation`), the one that the depthwise convolution
        makes of it (`..._activation`), before squeeze and excitation, and the output.
    """
    layers = keras_names(block)
    if "expand_conv" in layers:
        features = layers["expand_bn"](layers["expand_conv"](features))
    wide = layers["bn"](layers["dwconv"](features))
    squeezed = block.get_submodule("se")(wide)
    return features, wide, layers["project_bn"](layers["project_conv"](squeezed))


def _init_conv(conv: nn.Conv2d) -> None:
    """He-normal by fan-out, where a depthwise kernel counts once; zero biases."""
    is_depthwise = conv.groups > 1
    init_he_normal_(conv.weight if is_depthwise else conv.weight.transpose(0, 1))
    zero_bias(conv)
