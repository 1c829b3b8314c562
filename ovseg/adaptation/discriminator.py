"""The network that tells from maps of which domain an image is."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from ovseg.core.errors import InputError

KERNEL = 4
SLOPE = 0.2  # of the leaky ReLUs


class Discriminator(nn.Module):
    """Convolutions of 4 x 4 with leaky ReLUs; logits at some positions, enlarged to the image.

    All but the last two convolutions have a stride of 2. There are no norms.

    Args:
        in_channels: of the maps.
        channels: of all convolutions but the last, which has 1.

    Source: W.-C. Hung et al., Adversarial learning for semi-supervised semantic segmentation, BMVC
    2018, as AdapSegNet and DS2Net use it.
    """

    def __init__(self, in_channels: int, channels: Sequence[int]):
        super().__init__()
        layers: list[nn.Module] = []
        previous = in_channels
        for number, width in enumerate(channels, 1):
            stride = 1 if number == len(channels) else 2
            layers.append(nn.Conv2d(previous, width, KERNEL, stride, padding=1))
            layers.append(nn.LeakyReLU(SLOPE))
            previous = width
        layers.append(nn.Conv2d(previous, 1, KERNEL, 1, padding=1))
        self.layers = nn.Sequential(*layers)

    def forward(self, maps: Tensor, size: tuple[int, int]) -> Tensor:
        """Logits of "of the domain that this is named after".

        Args:
            maps: (N, in_channels, H, W).
            size: height and width of the image.

        Returns:
            (N, 1, *size).
        """
        return F.interpolate(self.layers(maps), size=size, mode="bilinear", align_corners=False)

    def judge(self, maps: Tensor, size: tuple[int, int]) -> Tensor:
        """As `forward`, but gradients reach the maps alone and none of this network's weights."""
        fixed = {name: parameter.detach() for name, parameter in self.named_parameters()}
        return functional_call(self, fixed, (maps, size))


def check_side(side: int, channels: Sequence[int]) -> None:
    """Refuse maps that are too small for a discriminator.

    Args:
        side: of its maps, pixels.
        channels: see `Discriminator`.

    Raises:
        InputError: no position would be left.
    """
    left = side
    for _ in channels[:-1]:
        left //= 2
    left -= 2
    if left < 1:
        raise InputError(
            f"adaptation.channels {list(channels)} are {len(channels) + 1} convolutions, which "
            f"leave nothing of maps of {side} x {side}. Name fewer channels, or raise "
            "data.image_size."
        )
