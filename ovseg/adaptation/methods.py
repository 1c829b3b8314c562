"""How labelled images of the source and unlabelled ones of the target become losses.

A method is a line in `METHODS`. It holds the discriminators and is not needed after training.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

from torch import Tensor, nn

from ovseg.adaptation.discriminator import Discriminator, check_side
from ovseg.adaptation.losses import domain_loss, softmax_over_positions
from ovseg.core.errors import InputError
from ovseg.core.registry import choose
from ovseg.models.ds2net import DS2Net

SegmentationLoss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class StepLosses:
    """The losses of one step, by the names under which they are logged.

    Attributes:
        logits: of the source images.
        segmentation: of the network, against the masks of the source.
        adversarial: of the network, for deceiving the discriminators; not weighted.
        discriminators: of the discriminators; not weighted. No gradient of them reaches the
            network, and none of the others the discriminators.
    """

    logits: Tensor
    segmentation: dict[str, Tensor]
    adversarial: dict[str, Tensor]
    discriminators: dict[str, Tensor]


class DS2NetMethod(nn.Module):
    """DS2Net: a discriminator on the deepest maps of each encoder.

    The source encoder is trained until its discriminator takes the target's images for the
    source's; the target encoder the other way round.

    Args:
        network: what is trained.
        classes: output channels of the network.
        channels: see `Discriminator`.
        image_size: side of the images, pixels.

    Raises:
        InputError: another network, or images that are too small for the discriminators.
    """

    def __init__(self, network: nn.Module, classes: int, channels: Sequence[int], image_size: int):
        super().__init__()
        if not isinstance(network, DS2Net):
            raise InputError(
                "adaptation.method ds2net is for model.arch ds2net alone. Set that, or "
                "adaptation.method: adapsegnet."
            )
        check_side(-(-image_size // network.stride), channels)
        self.source = Discriminator(network.map_channels, channels)
        self.target = Discriminator(network.map_channels, channels)

    def forward(self, network: nn.Module, batch: dict, loss: SegmentationLoss) -> StepLosses:
        """The losses of a batch, see `ovseg.adaptation.data`."""
        network = cast(DS2Net, network)
        image = batch["image"]
        size = (image.shape[-2], image.shape[-1])
        maps_s, maps_t = network.encode(image)
        logits_s, logits_t = network.decode(maps_s, maps_t, image)
        of_source_s = softmax_over_positions(maps_s[-1])
        of_source_t = softmax_over_positions(maps_t[-1])

        maps_s, maps_t = network.encode(batch["target"])
        of_target_s = softmax_over_positions(maps_s[-1])
        of_target_t = softmax_over_positions(maps_t[-1])

        seen_by_source = self.source(of_source_s.detach(), size)
        taken_for_source = self.source(of_target_s.detach(), size)
        seen_by_target = self.target(of_target_t.detach(), size)
        taken_for_target = self.target(of_source_t.detach(), size)
        return StepLosses(
            logits=(logits_s + logits_t) / 2,
            segmentation={
                "ce_s": loss(logits_s, batch["mask"]),
                "ce_t": loss(logits_t, batch["mask"]),
            },
            adversarial={
                "adv_s": domain_loss(self.source.judge(of_target_s, size), 1),
                "adv_t": domain_loss(self.target.judge(of_source_t, size), 1),
            },
            discriminators={
                "d_s": domain_loss(seen_by_source, 1) + domain_loss(taken_for_source, 0),
                "d_t": domain_loss(seen_by_target, 1) + domain_loss(taken_for_target, 0),
            },
        )


class AdapSegNetMethod(nn.Module):
    """AdapSegNet with one level: a discriminator on the predicted probabilities, any network.

    Args:
        network: what is trained.
        classes: output channels of the network.
        channels: see `Discriminator`.
        image_size: side of the images, pixels.

    Raises:
        InputError: images that are too small for the discriminator.

    Source: Y.-H. Tsai et al., Learning to adapt structured output space for semantic segmentation,
    CVPR 2018.
    """

    def __init__(self, network: nn.Module, classes: int, channels: Sequence[int], image_size: int):
        super().__init__()
        check_side(image_size, channels)
        self.source = Discriminator(classes, channels)

    def forward(self, network: nn.Module, batch: dict, loss: SegmentationLoss) -> StepLosses:
        """The losses of a batch, see `ovseg.adaptation.data`."""
        image = batch["image"]
        size = (image.shape[-2], image.shape[-1])
        logits = network(image)
        of_source = _probabilities(logits)
        of_target = _probabilities(network(batch["target"]))

        seen = self.source(of_source.detach(), size)
        taken_for_source = self.source(of_target.detach(), size)
        return StepLosses(
            logits=logits,
            segmentation={"ce_s": loss(logits, batch["mask"])},
            adversarial={"adv_s": domain_loss(self.source.judge(of_target, size), 1)},
            discriminators={"d_s": domain_loss(seen, 1) + domain_loss(taken_for_source, 0)},
        )


def _probabilities(logits: Tensor) -> Tensor:
    if logits.shape[1] == 1:
        return logits.float().sigmoid()
    return logits.float().softmax(dim=1)


METHODS: dict[str, type[DS2NetMethod] | type[AdapSegNetMethod]] = {
    "ds2net": DS2NetMethod,
    "adapsegnet": AdapSegNetMethod,
}


class Adaptation:
    """The settings of an adaptation: the section `adaptation` of a configuration.

    Args:
        target_root: the target's dataset, whose `train/images` are used, or a folder of pictures.
            Masks in it are never read in training.
        method: see `METHODS`.
        target_augmentation: of the target's images, as `data.augmentation`.
        target_fit: how the target's images fill the square, as `data.fit`; None for the same.
        weight: of the adversarial losses and those of the discriminators; 0.005 in the paper.
        channels: of the discriminators' convolutions, see
            `ovseg.adaptation.discriminator.Discriminator`.
        lr: of the discriminators' Adam, with betas of 0.9 and 0.99; the schedule is the network's.

    Raises:
        InputError: an unknown method, or a number out of range.
    """

    def __init__(
        self,
        target_root: str,
        method: str = "ds2net",
        target_augmentation: str = "none",
        target_fit: str | None = None,
        weight: float = 0.005,
        channels: list[int] | None = None,
        lr: float = 2.5e-4,
    ):
        choose("adaptation.method", method, METHODS)
        if weight < 0 or lr <= 0:
            raise InputError(
                f"adaptation.weight is {weight} and adaptation.lr {lr}, expected 0 or more and "
                "above 0."
            )
        self.channels = [64, 128, 256, 512] if channels is None else channels
        if not self.channels or min(self.channels) < 1:
            raise InputError(
                f"adaptation.channels is {channels}, expected one or more numbers of 1 or more."
            )
        self.target_root = target_root
        self.method = method
        self.target_augmentation = target_augmentation
        self.target_fit = target_fit
        self.weight = weight
        self.lr = lr
