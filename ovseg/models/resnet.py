"""Keras' ResNets of both versions, encoders of the baseline's DeepLabV3+ and TransUNet."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ovseg.models.layers import PortedModule, batch_norm, init_glorot

RESNET_EPSILON = 1.001e-5  # of batch normalisation, as in Keras' ResNets


def _resnet_norm(channels: int) -> nn.BatchNorm2d:
    return batch_norm(channels, RESNET_EPSILON)


def build_squeeze(in_channels: int, filters: int, stride: int) -> nn.Sequential:
    """The first two convolutions of a residual block, 1 x 1 and 3 x 3."""
    return nn.Sequential(
        nn.Conv2d(in_channels, filters, 1, stride),
        _resnet_norm(filters),
        nn.ReLU(inplace=True),
        nn.Conv2d(filters, filters, 3, padding=1),
        _resnet_norm(filters),
        nn.ReLU(inplace=True),
    )


def _build_projection(in_channels: int, out_channels: int, stride: int = 1) -> nn.Sequential:
    """A 1 x 1 convolution without activation."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 1, stride), _resnet_norm(out_channels)
    )


class ResidualBlock(nn.Module):
    """A bottleneck block of ResNet v1.

    The shortcut is a convolution where the number of channels changes.
    """

    def __init__(self, in_channels: int, filters: int, stride: int):
        super().__init__()
        out_channels = 4 * filters
        self.squeeze = build_squeeze(in_channels, filters, stride)
        self.expand = _build_projection(filters, out_channels)
        self.shortcut: nn.Module = nn.Identity()
        if in_channels != out_channels:
            self.shortcut = _build_projection(in_channels, out_channels, stride)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """The narrow map after the 3 x 3 convolution (Keras' `..._2_relu`), and the output."""
        narrow = self.squeeze(features)
        return narrow, F.relu(self.shortcut(features) + self.expand(narrow))


class KerasResNet(PortedModule):
    """Stem and residual blocks of Keras' ResNet v1; a subclass says which maps it gives.

    It is not torchvision's or timm's, whose numbers differ: Keras' convolutions have biases, stacks
    have their stride in the first 1 x 1 convolution (theirs in the 3 x 3), and batch normalisation
    adds 1.001e-5 (theirs 1e-5).

    Args:
        counts: residual blocks of every stack, `conv2` first.
        in_channels: of the image.

    Source: K. He et al., Deep residual learning, CVPR 2016; keras.applications.ResNet50.
    """

    def __init__(self, counts: Sequence[int], in_channels: int = 3):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 64, 7, 2, padding=3)
        self.norm1 = _resnet_norm(64)
        self.pool = nn.MaxPool2d(3, 2, padding=1)
        self.blocks = nn.ModuleDict()
        channels = 64
        filters = 64
        for stack, count in enumerate(counts, start=2):
            stride = 1 if stack == 2 else 2  # of the first block
            for number in range(1, count + 1):
                block = ResidualBlock(channels, filters, stride if number == 1 else 1)
                self.blocks[f"conv{stack}_block{number}"] = block
                channels = 4 * filters
            filters *= 2

    def embed(self, image: Tensor) -> Tensor:
        """Pixels -> the stem's map at half their size."""
        return F.relu(self.norm1(self.conv1(image)))

    def keras_layers(self) -> Iterator[tuple[str, nn.Module]]:
        yield "conv1_conv", self.conv1
        yield "conv1_bn", self.norm1
        for name, block in self.blocks.items():
            assert isinstance(block, ResidualBlock)
            yield from number_layers(name, 1, block.squeeze)
            yield from number_layers(name, 3, block.expand)
            yield from number_layers(name, 0, block.shortcut)


def number_layers(block: str, number: int, layers: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Convolutions and normalisations of one part of a block, numbered from `number`."""
    for kind, suffix in ((nn.Conv2d, "conv"), (nn.BatchNorm2d, "bn")):
        found = [module for module in layers.modules() if isinstance(module, kind)]
        for index, module in enumerate(found, start=number):
            yield f"{block}_{index}_{suffix}", module


class ResNetEncoder(KerasResNet):
    """ResNet v1 with the maps `conv1_relu`, `conv2_block3_out` and so on, the ends of its stacks.

    Args:
        counts: residual blocks of every stack of the whole ResNet.
        maps: number of maps, 1 to 5; what follows the last is left out.
        in_channels: of the image.
    """

    def __init__(self, counts: Sequence[int], maps: int, in_channels: int):
        super().__init__(counts[: maps - 1], in_channels)
        self.channels = [64, 256, 512, 1024, 2048][:maps]
        self.ends = _ends_of_stacks(counts)
        init_glorot(self)

    def forward(self, image: Tensor) -> list[Tensor]:
        """Maps at 1/2, 1/4, ... of the image's size."""
        features = self.embed(image)
        maps = [features]
        features = self.pool(features)
        for name, block in self.blocks.items():
            _, features = block(features)
            if name in self.ends:
                maps.append(features)
        return maps


def _ends_of_stacks(counts: Sequence[int]) -> list[str]:
    return [f"conv{stack}_block{count}" for stack, count in enumerate(counts, start=2)]


class PreactivatedBlock(nn.Module):
    """A bottleneck block of ResNet v2: normalisation and ReLU come before the convolutions.

    The shortcut is a convolution in the first block of a stack; in others it is the input, of which
    a stride leaves out pixels.
    """

    def __init__(self, in_channels: int, filters: int, stride: int, projects: bool):
        super().__init__()
        self.stride = stride
        self.before = nn.Sequential(_resnet_norm(in_channels), nn.ReLU(inplace=True))
        self.squeeze = nn.Sequential(
            nn.Conv2d(in_channels, filters, 1, bias=False),
            _resnet_norm(filters),
            nn.ReLU(inplace=True),
        )
        self.expand = nn.Sequential(
            nn.Conv2d(filters, filters, 3, stride, padding=1, bias=False),
            _resnet_norm(filters),
            nn.ReLU(inplace=True),
            nn.Conv2d(filters, 4 * filters, 1),
        )
        self.projection = nn.Conv2d(in_channels, 4 * filters, 1) if projects else None

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """The narrow map before the 3 x 3 convolution (Keras' `..._1_relu`), and the output."""
        active = self.before(features)
        narrow = self.squeeze(active)
        if self.projection is not None:
            shortcut = self.projection(active)
        else:
            shortcut = features[..., :: self.stride, :: self.stride]
        return narrow, shortcut + self.expand(narrow)


class ResNetV2Encoder(PortedModule):
    """Keras' ResNet v2 with the maps that keras-unet-collection takes from it.

    They are `conv1_conv`, which is not normalised and has no ReLU, the narrow `..._1_relu` of the
    last block of the stacks `conv2` to `conv4`, which halves the size behind it, and `post_relu`.

    Args:
        counts: residual blocks of every stack of the whole ResNet, `conv2` first.
        maps: number of maps, 1 to 5; what follows the last is left out.
        in_channels: of the image.

    Source: K. He et al., Identity mappings in deep residual networks, ECCV 2016;
        keras.applications.ResNet50V2.
    """

    def __init__(self, counts: Sequence[int], maps: int, in_channels: int):
        super().__init__()
        self.channels = [64, 64, 128, 256, 2048][:maps]
        self.ends = _ends_of_stacks(counts)
        self.conv1 = nn.Conv2d(in_channels, 64, 7, 2, padding=3)
        self.blocks = nn.ModuleDict()
        channels = 64
        filters = 64
        for stack, count in enumerate(counts[: maps - 1], start=2):
            stride = 1 if stack == 5 else 2  # of the last block
            for number in range(1, count + 1):
                self.blocks[f"conv{stack}_block{number}"] = PreactivatedBlock(
                    channels, filters, stride if number == count else 1, projects=number == 1
                )
                channels = 4 * filters
            filters *= 2
        # Of the last block only what leads to the map; of the whole ResNet what follows the blocks.
        self.last = nn.Sequential()
        if maps == 5:
            self.last.extend([_resnet_norm(channels), nn.ReLU(inplace=True)])
        elif maps > 1:
            block: Any = self.blocks.pop(self.ends[maps - 2])
            self.last.extend([*block.before, *block.squeeze])
        init_glorot(self)

    def forward(self, image: Tensor) -> list[Tensor]:
        """Maps at 1/2, 1/4, ... of the image's size."""
        features = self.conv1(image)
        maps = [features]
        if len(self.channels) == 1:
            return maps
        # Keras pads with zeros, which can be larger than what is pooled; torch's pooling doesn't.
        features = F.max_pool2d(F.pad(features, (1, 1, 1, 1)), 3, 2)
        for name, block in self.blocks.items():
            narrow, features = block(features)
            if name in self.ends[:3]:
                maps.append(narrow)
        return [*maps, self.last(features)]

    def keras_layers(self) -> Iterator[tuple[str, nn.Module]]:
        yield "conv1_conv", self.conv1
        for name, block in self.blocks.items():
            assert isinstance(block, PreactivatedBlock)
            yield f"{name}_preact_bn", block.before[0]
            yield from number_layers(name, 1, block.squeeze)
            yield from number_layers(name, 2, block.expand)
            if block.projection is not None:
                yield f"{name}_0_conv", block.projection
        if len(self.channels) == 5:
            yield "post_bn", self.last[0]
        elif len(self.channels) > 1:
            name = self.ends[len(self.channels) - 2]
            yield f"{name}_preact_bn", self.last[0]
            yield from number_layers(name, 1, self.last[2:])
