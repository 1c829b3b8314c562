"""Losses by name, on logits, in float32 also under mixed precision.

Those for one class are of sigmoid(logits), and equal the baseline's where it has them; those for several
classes are of softmax(logits).
"""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import distance_transform_edt
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure
from torchvision.ops import sigmoid_focal_loss

from ovseg.core.errors import InputError
from ovseg.core.registry import choose
from ovseg.metrics import dice_coef, iou_coef

BCE_LIMIT = (
    16.118095  # log((1 - 1e-7) / 1e-7): the baseline clips probabilities to 1e-7 .. 1 - 1e-7
)


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
        logits.sigmoid(),
        mask,
        sigma=1.5,
        kernel_size=11,
        data_range=1.0,
        k1=0.01,
        k2=0.03,
        return_full_image=True,
    )
    return (
        1 - similarity[..., 5:-5, 5:-5].mean()
    )  # where the whole window lies in the image, as TensorFlow has it


def bce_dice_loss(logits: Tensor, mask: Tensor) -> Tensor:
    """(cross-entropy + Dice loss) / 2, scalar: the baseline's loss."""
    return (binary_crossentropy(logits, mask) + dice_loss(logits, mask)) / 2


def bce_iou_loss(logits: Tensor, mask: Tensor) -> Tensor:
    """(cross-entropy + IoU loss) / 2, scalar."""
    return (binary_crossentropy(logits, mask) + iou_loss(logits, mask)) / 2


def basnet_hybrid_loss(logits: Tensor, mask: Tensor) -> Tensor:
    """(cross-entropy + SSIM loss + IoU loss) / 3, scalar. Source: X. Qin et al., BASNet, CVPR 2019."""
    return (
        binary_crossentropy(logits, mask) + ssim_loss(logits, mask) + iou_loss(logits, mask)
    ) / 3


def dice_per_image_loss(logits: Tensor, mask: Tensor) -> Tensor:
    """1 - soft Dice of every image, their mean, scalar: a small lesion weighs as much as a large one.

    One pixel of smoothing, as in `dice_coef`, so an empty mask asks for an empty prediction. segmentation-models-
    pytorch's DiceLoss sums over the batch, as `dice_loss` does.
    """
    return tversky_loss(logits, mask, 0.5, 0.5)


def bce_dice_per_image_loss(logits: Tensor, mask: Tensor) -> Tensor:
    """(cross-entropy + Dice loss of every image) / 2, scalar."""
    return (binary_crossentropy(logits, mask) + dice_per_image_loss(logits, mask)) / 2


def tversky_loss(logits: Tensor, mask: Tensor, false: float = 0.3, missed: float = 0.7) -> Tensor:
    """1 - Tversky index of every image, their mean, scalar: a missed pixel costs more than a false one.

    Half a pixel of smoothing, so an empty mask asks for an empty prediction; 0.5 and 0.5 make it the Dice loss.

    Source: S. S. M. Salehi et al., MLMI 2017, whose best weights are 0.3 and 0.7.
    """
    probs, mask = logits.sigmoid().flatten(1), mask.flatten(1)
    hit = (probs * mask).sum(1)
    wrong = false * (probs * (1 - mask)).sum(1) + missed * ((1 - probs) * mask).sum(1)
    return (1 - (hit + 0.5) / (hit + wrong + 0.5)).mean()


def focal_loss(logits: Tensor, mask: Tensor) -> Tensor:
    """Cross-entropy weighted by the square of what is missing to certainty, mean over pixels, scalar.

    No class weights: they are for objects far rarer than a lesion's pixels.

    Source: T.-Y. Lin et al., ICCV 2017, whose best exponent is 2.
    """
    return sigmoid_focal_loss(logits, mask, alpha=-1, gamma=2, reduction="mean")


def lovasz_loss(logits: Tensor, mask: Tensor) -> Tensor:
    """The Lovasz hinge of every image, their mean, scalar: the convex surrogate of 1 - IoU.

    Of an empty mask it is the hinge of the most lesion-like pixel.

    Source: M. Berman et al., CVPR 2018, algorithm 1.
    """
    logits, mask = logits.flatten(1), mask.flatten(1)
    errors, order = (1 - logits * (2 * mask - 1)).sort(1, descending=True)
    mask = mask.gather(1, order)
    area = mask.sum(1, keepdim=True)
    lost = 1 - (area - mask.cumsum(1)) / (area + (1 - mask).cumsum(1))
    return (errors.relu() * lost.diff(dim=1, prepend=torch.zeros_like(area))).sum(1).mean()


def boundary_loss(logits: Tensor, mask: Tensor) -> Tensor:
    """Mean over pixels of |probability - mask| times the distance to the mask's border, scalar in 0..1.

    Distances count from the edges of pixels and are divided by the image's largest. This is the source's loss less
    that of the mask itself, which no gradient sees: so the best is 0. A mask without border, empty or full, costs 0:
    combine the loss with another. The distances are computed on the CPU at every step.

    Source: H. Kervadec et al., Medical Image Analysis 67, 2021, equation 5.
    """
    distance = np.stack([border_distance(image) for image in mask[:, 0].cpu().numpy() > 0.5])
    return (
        torch.from_numpy(distance).to(logits.device)[:, None] * (logits.sigmoid() - mask).abs()
    ).mean()


def border_distance(mask: np.ndarray) -> np.ndarray:
    """Distance of each pixel's centre to the border of a mask, bool (H, W) -> float32 (H, W) in 0..1."""
    if mask.all() or not mask.any():
        return np.zeros(mask.shape, np.float32)
    distance = distance_transform_edt(mask) + distance_transform_edt(~mask) - 0.5
    return (distance / distance.max()).astype(np.float32)


def bce_dice_boundary_loss(logits: Tensor, mask: Tensor) -> Tensor:
    """(cross-entropy + Dice loss of every image + boundary loss) / 3, scalar."""
    return (
        binary_crossentropy(logits, mask)
        + dice_per_image_loss(logits, mask)
        + boundary_loss(logits, mask)
    ) / 3


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "binary_crossentropy": binary_crossentropy,
    "dice_loss": dice_loss,
    "bce_dice_loss": bce_dice_loss,
    "iou_loss": iou_loss,
    "bce_iou_loss": bce_iou_loss,
    "ssim_loss": ssim_loss,
    "basnet_hybrid_loss": basnet_hybrid_loss,
    "dice_per_image_loss": dice_per_image_loss,
    "bce_dice_per_image_loss": bce_dice_per_image_loss,
    "tversky_loss": tversky_loss,
    "focal_loss": focal_loss,
    "lovasz_loss": lovasz_loss,
    "boundary_loss": boundary_loss,
    "bce_dice_boundary_loss": bce_dice_boundary_loss,
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
