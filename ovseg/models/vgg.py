"""Keras' VGG, an encoder of the baseline's TransUNet."""

from collections.abc import Iterator, Sequence

from torch import Tensor, nn

from ovseg.models.layers import PortedModule, init_glorot


class VGGEncoder(PortedModule):
    """The convolutions of a VGG up to the last map that is asked for.

    Maps are `block1_conv2` and so on: after the last convolution of a block and its ReLU, before it
    is pooled.

    Args:
        counts: convolutions of every block, the first at the image's size.
        maps: number of maps, which is that of blocks, 1 to 5.
        in_channels: of the image.

    Source: K. Simonyan and A. Zisserman, Very deep convolutional networks, ICLR 2015;
        keras.applications.VGG16.
    """

    def __init__(self, counts: Sequence[int], maps: int, in_channels: int):
        super().__init__()
        self.channels = [64, 128, 256, 512, 512][:maps]
        self.stages = nn.ModuleList()
        for count, filters in zip(counts, self.channels, strict=False):
            stage = nn.Sequential()
            if len(self.stages) > 0:
                stage.append(nn.MaxPool2d(2))
            for _ in range(count):
                stage.append(nn.Conv2d(in_channels, filters, 3, padding=1))
                stage.append(nn.ReLU(inplace=True))
                in_channels = filters
            self.stages.append(stage)
        init_glorot(self)

    def forward(self, image: Tensor) -> list[Tensor]:
        """Maps at 1/1, 1/2, ... of the image's size."""
        features = image
        maps = []
        for stage in self.stages:
            features = stage(features)
            maps.append(features)
        return maps

    def keras_layers(self) -> Iterator[tuple[str, nn.Module]]:
        for block, stage in enumerate(self.stages, start=1):
            convs = [module for module in stage.modules() if isinstance(module, nn.Conv2d)]
            for number, conv in enumerate(convs, start=1):
                yield f"block{block}_conv{number}", conv
