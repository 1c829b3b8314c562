"""Losses by name, on logits, in float32 also under mixed precision.

Those for one class equal the baseline's on sigmoid(logits); those for several classes are of softmax(logits).
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from ovseg.errors import InputError, choose
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


def cross_entropy(logits: Tensor, mask: Tensor) -> Tensor:
    """Mean cross-entropy over all pixels of a batch, from ids int64 (N, H, W), scalar."""
    return F.cross_entropy(logits, mask)


def category_dice_loss(logits: Tensor, mask: Tensor) -> Tensor:
    """1 - soft Dice, the mean over every image and each category that its mask holds, scalar.

    Of each image, not of the batch: so a small lesion weighs as much as a large one, as in the score that is reported.
    Background and categories that the mask lacks are left to the cross-entropy (softmax takes from one class what it
    gives another); without any category in the batch the loss is 0. One pixel of smoothing, as in `dice_coef`.
    """
    probs = logits.softmax(1).flatten(2)[:, 1:]
    mask = F.one_hot(mask, logits.shape[1]).movedim(-1, 1).flatten(2)[:, 1:]
    area = mask.sum(2)
    dice = (2 * (mask * probs).sum(2) + 1) / (area + probs.sum(2) + 1)
    present = area > 0
    return ((1 - dice) * present).sum() / present.sum().clamp_min(1)


def ce_dice_loss(logits: Tensor, mask: Tensor) -> Tensor:
    """(cross-entropy + Dice loss over categories) / 2, scalar: `bce_dice_loss` for several classes."""
    return (cross_entropy(logits, mask) + category_dice_loss(logits, mask)) / 2


CATEGORY_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cross_entropy": cross_entropy,
    "category_dice_loss": category_dice_loss,
    "ce_dice_loss": ce_dice_loss,
}


def build_loss(name: str, classes: int = 1) -> Callable[[Tensor, Tensor], Tensor]:
    """A loss by name: (logits of any float type (N, classes, H, W), mask of ids (N, 1, H, W)) -> float32 scalar.

    Args:
        name: of `LOSSES` for one class, of `CATEGORY_LOSSES` for more.
        classes: 1, or background and categories.

    Raises:
        InputError: unknown name, or one for the other number of classes; the message lists the known ones.
    """
    fitting, other = (LOSSES, CATEGORY_LOSSES) if classes == 1 else (CATEGORY_LOSSES, LOSSES)
    if name in other:
        raise InputError(
            f"The loss {name} is for {'one class' if classes > 1 else 'several classes'}, but "
            f"model.arch_args.classes is {classes}. Choose one of: {', '.join(sorted(fitting))}."
        )
    function = choose("loss", name, fitting)

    def loss(logits: Tensor, mask: Tensor) -> Tensor:
        with torch.autocast(logits.device.type, enabled=False):
            return function(logits.float(), mask.float() if classes == 1 else mask[:, 0].long())

    return loss
