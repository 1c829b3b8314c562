"""Encoders of keras.applications, as keras-unet-collection takes them for the baseline's TransUNet.

Their modules are imported when they are asked for: timm takes longer to import than a small network
to predict a picture.
"""

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from ovseg.core.registry import choose
from ovseg.models.layers import PortedModule, keras_layers_of

VGGS = {"VGG16": (2, 2, 3, 3, 3), "VGG19": (2, 2, 4, 4, 4)}  # convolutions of every block
# Residual blocks of every stack.
RESNETS = {"ResNet50": (3, 4, 6, 3), "ResNet101": (3, 4, 23, 3), "ResNet152": (3, 8, 36, 3)}
RESNETS_V2 = {f"{name}V2": counts for name, counts in RESNETS.items()}
DENSENETS = {name: name.lower() for name in ("DenseNet121", "DenseNet169", "DenseNet201")}  # timm's
EFFICIENTNETS = {f"EfficientNetB{number}": f"B{number}" for number in range(8)}
BACKBONES = {**VGGS, **RESNETS, **RESNETS_V2, **DENSENETS, **EFFICIENTNETS}

MAX_MAPS = 5  # that the collection takes of each


class Backbone(PortedModule):
    """An encoder by its name in keras.applications; it gives several maps.

    What follows the last map is not part of it, nor of the baseline's file.

    Attributes:
        first_level: of the first map: 0 at the image's size (VGG), 1 at half of it (all others).
        channels: of every map.

    Args:
        name: see `BACKBONES`.
        levels: of the whole network; the maps are those of levels `first_level` to `levels` - 1, at
            most five.
        in_channels: of the image.
        imagenet_rescaling: see `KerasEfficientNet`; not for other encoders.

    Raises:
        InputError: an unknown name; the message lists the known ones.

    Source: keras-unet-collection's backbone_zoo.
    """

    def __init__(
        self, name: str, levels: int, in_channels: int = 3, imagenet_rescaling: bool = False
    ):
        super().__init__()
        self.first_level = first_level(name)
        maps = min(levels - self.first_level, MAX_MAPS)
        encoder: Any = _build_encoder(name, maps, in_channels, imagenet_rescaling)
        self.encoder = encoder
        self.channels: list[int] = encoder.channels
        self.has_frozen_norms = False

    def forward(self, image: Tensor) -> list[Tensor]:
        """Pixels 0..255 -> maps, each at half the size of the one before."""
        return self.encoder(image)

    def keras_layers(self) -> Iterator[tuple[str, nn.Module]]:
        yield from keras_layers_of(self.encoder)

    def freeze(self, batch_norm: bool) -> None:
        """Train nothing of it, or its batch normalisation alone, as the collection does.

        Frozen batch normalisation uses its moving statistics in training too. The drop-connect of
        an EfficientNet stays on.

        Args:
            batch_norm: freeze batch normalisation too.
        """
        self.requires_grad_(False)
        self.has_frozen_norms = batch_norm
        if not batch_norm:
            for norm in self._norms():
                norm.requires_grad_(True)

    def train(self, mode: bool = True) -> "Backbone":
        super().train(mode)
        if self.has_frozen_norms:
            for norm in self._norms():
                norm.eval()
        return self

    def _norms(self) -> Iterator[nn.BatchNorm2d]:
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                yield module


def first_level(name: str) -> int:
    """The level of a backbone's first map: 0 at the image's size, 1 at half of it.

    Raises:
        InputError: an unknown name; the message lists the known ones.
    """
    choose("backbone", name, BACKBONES)
    return 0 if name in VGGS else 1


def _build_encoder(name: str, maps: int, in_channels: int, imagenet_rescaling: bool) -> nn.Module:
    if name in VGGS:
        from ovseg.models.vgg import VGGEncoder

        return VGGEncoder(VGGS[name], maps, in_channels)
    if name in RESNETS:
        from ovseg.models.resnet import ResNetEncoder

        return ResNetEncoder(RESNETS[name], maps, in_channels)
    if name in RESNETS_V2:
        from ovseg.models.resnet import ResNetV2Encoder

        return ResNetV2Encoder(RESNETS_V2[name], maps, in_channels)
    if name in DENSENETS:
        from ovseg.models.densenet import DenseNetEncoder

        return DenseNetEncoder(DENSENETS[name], maps, in_channels)
    from ovseg.models.efficientnet import ExpansionEncoder

    return ExpansionEncoder(EFFICIENTNETS[name], maps, in_channels, imagenet_rescaling)
