"""Keras' DenseNet, made of timm's blocks, an encoder of the baseline's TransUNet."""

from collections.abc import Iterator
from typing import Any

import timm
from torch import Tensor, nn

from ovseg.models.layers import KERAS_MOMENTUM, PortedModule, init_glorot
from ovseg.models.resnet import RESNET_EPSILON


class DenseNetEncoder(PortedModule):
    """A DenseNet up to the last map that is asked for.

    Maps are `conv1/relu`, `pool2_conv`, `pool3_conv`, `pool4_conv` (a transition's convolution,
    before it is pooled) and `relu`. timm's blocks compute what Keras computes; only the constants
    of batch normalisation differ and are set here. Layers have their Keras 3 names; for
    `conv1_conv` Keras 2 writes `conv1/conv`.

    Args:
        name: of timm, such as `densenet121`.
        maps: number of maps, 1 to 5.
        in_channels: of the image.

    Source: G. Huang et al., Densely connected convolutional networks, CVPR 2017;
        keras.applications.DenseNet121.
    """

    def __init__(self, name: str, maps: int, in_channels: int):
        super().__init__()
        network: Any = timm.create_model(name, in_chans=in_channels)
        parts = network.features
        stages: list[dict[str, nn.Module]] = [{"conv1_conv": parts.conv0, "conv1_bn": parts.norm0}]
        pool = parts.pool0
        for number in range(2, 5):
            transition = parts.get_submodule(f"transition{number - 1}")
            stages.append(
                {
                    f"pool{number - 1}": pool,
                    f"conv{number}": parts.get_submodule(f"denseblock{number - 1}"),
                    f"pool{number}_bn": transition.norm,
                    f"pool{number}_conv": transition.conv,
                }
            )
            pool = transition.pool
        stages.append({"pool4": pool, "conv5": parts.denseblock4, "bn": parts.norm5})

        self.stages = nn.ModuleList()
        self.channels: list[int] = []
        for stage in stages[:maps]:
            last: Any = list(stage.values())[-1]
            is_norm = isinstance(last, nn.BatchNorm2d)
            self.channels.append(last.num_features if is_norm else last.out_channels)
            self.stages.append(nn.ModuleDict(stage))
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eps = RESNET_EPSILON
                module.momentum = KERAS_MOMENTUM
        init_glorot(self)

    def forward(self, image: Tensor) -> list[Tensor]:
        """Maps at 1/2, 1/4, ... of the image's size."""
        features = image
        maps = []
        stage: Any
        for stage in self.stages:
            for layer in stage.values():
                features = layer(features)
            maps.append(features)
        return maps

    def keras_layers(self) -> Iterator[tuple[str, nn.Module]]:
        stage: Any
        layer: Any
        for stage in self.stages:
            for name, module in stage.items():
                if isinstance(module, nn.ModuleDict):
                    for number, layer in enumerate(module.values(), start=1):
                        yield f"{name}_block{number}_0_bn", layer.norm1
                        yield f"{name}_block{number}_1_conv", layer.conv1
                        yield f"{name}_block{number}_1_bn", layer.norm2
                        yield f"{name}_block{number}_2_conv", layer.conv2
                elif isinstance(module, nn.Conv2d | nn.BatchNorm2d):
                    yield name, module
