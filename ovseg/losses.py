"""Losses by name, on logits, in float32 also under mixed precision; equal to the baseline's on sigmoid(logits)."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from ovseg.errors import choose
from ovseg.metrics import dice_coef, iou_coef

BCE_LIMIT = 16.118095  # log((1 - 1e-7) / 1e-7): the baseline clips probabilities to 1e-7 .. 1 - 1e-7


def binary_crossentropy(logits: Tensor, mask: Tensor) -> Tensor:
    """Mean binary cross-entropy of probabilities clipped to 1e-7 .. 1 - 1e-7, scalar.

    The value is that of the clipped probabilities; the gradient is that of the unclipped ones, for a clipped gradient
    is zero just where the network is most wrong.
    """
    limited = F.binary_cross_entropy_with_logits(logits.clamp(-BCE_LIMIT, BCE_LIMIT), mask)
    free = F.binary_cross_entropy_with_logits(logits, mask)
    return free + (limited - free).detach()


def dice_loss(logits: Tensor, mask: Tensor) -> Tensor:
    """1 - soft Dice over the batch, scalar."""
    return 1 - dice_coef(logits.sigmoid(), mask)


def iou_loss(logits: Tensor, mask: Tensor) -> Tensor:
    """1 - soft IoU over the batch, scalar."""
    return 1 - iou_coef(logits.sigmoid(), mask)


def ssim_loss(logits: Tensor, mask: Tensor) -> Tensor:
    """1 - mean structural similarity (Gaussian window of 11, sigma 1.5), scalar; sides of at least 11 pixels.

    Source: Z. Wang et al., IEEE Trans. Image Process. 13(4), 2004; the values are those of tf.image.ssim.
    """
    _, similarity = structural_similarity_index_measure(
        logits.sigmoid(), mask, sigma=1.5, kernel_size=11, data_range=1.0, k1=0.01, k2=0.03, return_full_image=True
    )
    return 1 - similarity[..., 5:-5, 5:-5].mean()  # where the whole window lies in the image, as TensorFlow has it


def bce_dice_loss(logits: Tensor, mask: Tensor) -> Tensor:
    """(cross-entropy + Dice loss) / 2, scalar: the baseline's loss."""
    return (binary_crossentropy(logits, mask) + dice_loss(logits, mask)) / 2


def bce_iou_loss(logits: Tensor, mask: Tensor) -> Tensor:
    """(cross-entropy + IoU loss) / 2, scalar."""
    return (binary_crossentropy(logits, mask) + iou_loss(logits, mask)) / 2


def basnet_hybrid_loss(logits: Tensor, mask: Tensor) -> Tensor:
    """(cross-entropy + SSIM loss + IoU loss) / 3, scalar. Source: X. Qin et al., BASNet, CVPR 2019."""
    return (binary_crossentropy(logits, mask) + ssim_loss(logits, mask) + iou_loss(logits, mask)) / 3


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "binary_crossentropy": binary_crossentropy,
    "dice_loss": dice_loss,
    "bce_dice_loss": bce_dice_loss,
    "iou_loss": iou_loss,
    "bce_iou_loss": bce_iou_loss,
    "ssim_loss": ssim_loss,
    "basnet_hybrid_loss": basnet_hybrid_loss,
}


def build_loss(name: str) -> Callable[[Tensor, Tensor], Tensor]:
    """A loss by name: (logits of any float type, mask 0/1 of any type, both (N, 1, H, W)) -> float32 scalar.

    Raises:
        InputError: unknown name; the message lists the known ones.
    """
    function = choose("loss", name, LOSSES)

    def loss(logits: Tensor, mask: Tensor) -> Tensor:
        with torch.autocast(logits.device.type, enabled=False):
            return function(logits.float(), mask.float())

    return loss
