"""Losses by name, on logits, in float32 also under mixed precision.

Losses of one class take sigmoid(logits) and equal the baseline's where the baseline has them.
Losses of several classes take softmax(logits). Every loss is a scalar.
"""

import inspect
from collections.abc import Callable, Mapping

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import distance_transform_edt
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure
from torchvision.ops import sigmoid_focal_loss

from ovseg.core.errors import InputError
from ovseg.core.registry import check_arguments, choose
from ovseg.core.trust import import_own
from ovseg.metrics import dice_coef, iou_coef

LossFunction = Callable[..., Tensor]

# log((1 - 1e-7) / 1e-7): the baseline clips probabilities to 1e-7 .. 1 - 1e-7.
BCE_LIMIT = 16.118095


# One class: logits and mask float32 (N, 1, H, W), the mask 0 or 1.


def binary_crossentropy(logits: Tensor, mask: Tensor) -> Tensor:
    """Mean binary cross-entropy of probabilities clipped to 1e-7 .. 1 - 1e-7.

    The value is that of the clipped probabilities, the gradient that of the unclipped ones: a
    clipped gradient is zero just where the network is most wrong.
    """
    clipped_logits = logits.clamp(-BCE_LIMIT, BCE_LIMIT)
    clipped = F.binary_cross_entropy_with_logits(clipped_logits, mask)
    unclipped = F.binary_cross_entropy_with_logits(logits, mask)
    return unclipped + (clipped - unclipped).detach()


def dice_loss(logits: Tensor, mask: Tensor) -> Tensor:
    """1 - soft Dice over the batch."""
    return 1 - dice_coef(logits.sigmoid(), mask)


def iou_loss(logits: Tensor, mask: Tensor) -> Tensor:
    """1 - soft IoU over the batch."""
    return 1 - iou_coef(logits.sigmoid(), mask)


def ssim_loss(logits: Tensor, mask: Tensor) -> Tensor:
    """1 - mean structural similarity.

    Raises:
        InputError: images of less than 11 x 11 pixels, the size of the window.

    Source: Z. Wang et al., IEEE Trans. Image Process. 13(4), 2004; the values are those of
        tf.image.ssim.
    """
    height, width = mask.shape[-2:]
    if min(height, width) < 11:
        raise InputError(
            f"ssim_loss needs images of at least 11 x 11 pixels, found {height} x {width}. "
            "Raise data.image_size or choose another loss."
        )
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
    # TensorFlow averages only where the whole window of 11 pixels lies in the image.
    inside = similarity[..., 5:-5, 5:-5]
    return 1 - inside.mean()


def bce_dice_loss(logits: Tensor, mask: Tensor) -> Tensor:
    """(cross-entropy + Dice loss) / 2: the baseline's loss."""
    return (binary_crossentropy(logits, mask) + dice_loss(logits, mask)) / 2


def bce_iou_loss(logits: Tensor, mask: Tensor) -> Tensor:
    """(cross-entropy + IoU loss) / 2."""
    return (binary_crossentropy(logits, mask) + iou_loss(logits, mask)) / 2


def basnet_hybrid_loss(logits: Tensor, mask: Tensor) -> Tensor:
    """(cross-entropy + SSIM loss + IoU loss) / 3.

    Source: X. Qin et al., BASNet, CVPR 2019.
    """
    entropy = binary_crossentropy(logits, mask)
    similarity = ssim_loss(logits, mask)
    overlap = iou_loss(logits, mask)
    return (entropy + similarity + overlap) / 3


def tversky_loss(
    logits: Tensor,
    mask: Tensor,
    false_positive_weight: float = 0.3,
    false_negative_weight: float = 0.7,
) -> Tensor:
    """1 - Tversky index of each image, averaged: a missed pixel costs more than a false one.

    Half a pixel of smoothing, so an empty mask asks for an empty prediction.

    Args:
        logits: float32 (N, 1, H, W).
        mask: 0 or 1, same shape.
        false_positive_weight: cost of a false positive; the Dice loss has 0.5 for both.
        false_negative_weight: cost of a false negative.

    Source: S. S. M. Salehi et al., MLMI 2017, whose best weights are 0.3 and 0.7.
    """
    probs = logits.sigmoid().flatten(1)
    mask = mask.flatten(1)
    true_positive = (probs * mask).sum(1)
    false_positive = (probs * (1 - mask)).sum(1)
    false_negative = ((1 - probs) * mask).sum(1)
    cost = false_positive_weight * false_positive + false_negative_weight * false_negative
    index = (true_positive + 0.5) / (true_positive + cost + 0.5)
    return (1 - index).mean()


def dice_per_image_loss(logits: Tensor, mask: Tensor) -> Tensor:
    """1 - soft Dice of each image, averaged: a small lesion weighs as much as a large one.

    One pixel of smoothing, as in `dice_coef`, so an empty mask asks for an empty prediction.
    """
    # The Tversky index with both weights 0.5 is Dice with both its halves divided by 2, so the half
    # pixel of smoothing there is the one pixel here. segmentation-models-pytorch's DiceLoss sums
    # over the batch, as `dice_loss` does.
    return tversky_loss(logits, mask, 0.5, 0.5)


def bce_dice_per_image_loss(logits: Tensor, mask: Tensor) -> Tensor:
    """(cross-entropy + Dice loss of each image) / 2."""
    return (binary_crossentropy(logits, mask) + dice_per_image_loss(logits, mask)) / 2


def focal_loss(logits: Tensor, mask: Tensor) -> Tensor:
    """Cross-entropy weighted by (1 - probability of the right class)^2, mean over pixels.

    Without class weights, which are for objects far rarer than a lesion's pixels.

    Source: T.-Y. Lin et al., ICCV 2017, whose best exponent is 2.
    """
    without_class_weights = -1
    return sigmoid_focal_loss(logits, mask, alpha=without_class_weights, gamma=2, reduction="mean")


def lovasz_loss(logits: Tensor, mask: Tensor) -> Tensor:
    """The Lovasz hinge of each image, averaged: a convex surrogate of 1 - IoU.

    For an empty mask it is the hinge of the pixel with the largest logit.

    Source: M. Berman et al., CVPR 2018, algorithm 1.
    """
    # segmentation-models-pytorch's LovaszLoss has the same values but loops over the images:
    # version 0.6.0 took 2.3 to 4.4 times as long.
    logits = logits.flatten(1)
    mask = mask.flatten(1)
    signs = 2 * mask - 1
    errors, order = (1 - logits * signs).sort(1, descending=True)

    # 1 - IoU where the first 1, 2, ... pixels of this order are wrong, and what each pixel adds.
    sorted_mask = mask.gather(1, order)
    area = mask.sum(1, keepdim=True)
    intersection = area - sorted_mask.cumsum(1)
    union = area + (1 - sorted_mask).cumsum(1)
    jaccard_loss = 1 - intersection / union
    added_by_pixel = jaccard_loss.diff(dim=1, prepend=torch.zeros_like(area))
    return (errors.relu() * added_by_pixel).sum(1).mean()


def boundary_loss(logits: Tensor, mask: Tensor) -> Tensor:
    """|probability - mask| times the distance to the mask's border, mean over pixels, in 0..1.

    An empty or full mask has no border and costs 0: combine this loss with another one. The
    distances are computed on the CPU at every step.

    Source: H. Kervadec et al., Medical Image Analysis 67, 2021, equation 5. This is the source's
        loss minus the loss of the mask itself, a constant without gradient, so that the best value
        is 0.
    """
    lesions = mask[:, 0].cpu().numpy() > 0.5
    distances = np.stack([border_distance(lesion) for lesion in lesions])
    weights = torch.from_numpy(distances).to(logits.device)[:, None]
    return (weights * (logits.sigmoid() - mask).abs()).mean()


def border_distance(mask: np.ndarray) -> np.ndarray:
    """Distance of each pixel's centre to the mask's border, which runs along the edges of pixels.

    Args:
        mask: bool (H, W).

    Returns:
        float32 (H, W), divided by the largest distance, so 0..1; 0 for an empty or full mask.
    """
    has_border = mask.any() and not mask.all()
    if not has_border:
        return np.zeros(mask.shape, np.float32)
    distance = distance_transform_edt(mask) + distance_transform_edt(~mask) - 0.5
    return (distance / distance.max()).astype(np.float32)


def bce_dice_boundary_loss(logits: Tensor, mask: Tensor) -> Tensor:
    """(cross-entropy + Dice loss of each image + boundary loss) / 3."""
    entropy = binary_crossentropy(logits, mask)
    dice = dice_per_image_loss(logits, mask)
    boundary = boundary_loss(logits, mask)
    return (entropy + dice + boundary) / 3


# Several classes: logits float32 (N, classes, H, W), mask of category ids int64 (N, H, W).


def cross_entropy(logits: Tensor, mask: Tensor) -> Tensor:
    """Mean cross-entropy over all pixels of a batch."""
    return F.cross_entropy(logits, mask)


def category_dice_loss(logits: Tensor, mask: Tensor) -> Tensor:
    """1 - soft Dice, averaged over each image and each category that its mask has.

    Each image counts, as in the reported score, so a small lesion weighs as much as a large one.
    The background and categories that the mask lacks are not scored: train with `ce_dice_loss`,
    whose cross-entropy scores them. A batch without any category costs 0. One pixel of
    smoothing, as in `dice_coef`.
    """
    probs = logits.softmax(1).flatten(2)[:, 1:]
    one_hot = F.one_hot(mask, logits.shape[1]).movedim(-1, 1)
    reference = one_hot.flatten(2)[:, 1:]
    area = reference.sum(2)
    dice = (2 * (reference * probs).sum(2) + 1) / (area + probs.sum(2) + 1)
    present = area > 0
    return ((1 - dice) * present).sum() / present.sum().clamp_min(1)


def ce_dice_loss(logits: Tensor, mask: Tensor) -> Tensor:
    """(cross-entropy + Dice loss over categories) / 2: `bce_dice_loss` for several classes."""
    return (cross_entropy(logits, mask) + category_dice_loss(logits, mask)) / 2


# Losses of one class, and of several.
LOSSES: dict[str, LossFunction] = {
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
CATEGORY_LOSSES: dict[str, LossFunction] = {
    "cross_entropy": cross_entropy,
    "category_dice_loss": category_dice_loss,
    "ce_dice_loss": ce_dice_loss,
}


def build_loss(
    name: str, classes: int = 1, arguments: Mapping[str, object] | None = None
) -> LossFunction:
    """A loss by name.

    Args:
        name: in `LOSSES` for one class, in `CATEGORY_LOSSES` for several; or `package.module.name`
            of a function of your own (see `ovseg.core.trust`) that takes the same and returns a
            scalar.
        classes: 1, or the background and all categories.
        arguments: of the loss, after logits and mask.

    Returns:
        A function of logits, any float type (N, classes, H, W), and a mask of category ids, any
        type (N, 1, H, W), that returns a float32 scalar.

    Raises:
        InputError: unknown name or argument, or a loss for the other number of classes; the
            message lists the choices.
    """
    several = classes > 1
    function = _find_loss(name, classes)
    arguments = dict(arguments or {})
    check_arguments(f"loss {name}", function, arguments, given=2)

    def loss(logits: Tensor, mask: Tensor) -> Tensor:
        target = mask[:, 0].long() if several else mask.float()
        with torch.autocast(logits.device.type, enabled=False):
            return function(logits.float(), target, **arguments)

    return loss


def _find_loss(name: str, classes: int) -> Callable[..., Tensor]:
    """The function of a loss, see `build_loss`."""
    if isinstance(name, str) and "." in name:
        own = import_own("model.loss", name)
        if not inspect.isfunction(own):
            raise InputError(
                f"model.loss {name} is no function, expected one of logits and mask that returns "
                "a scalar."
            )
        return own
    choices = CATEGORY_LOSSES if classes > 1 else LOSSES
    if name not in choices and (name in LOSSES or name in CATEGORY_LOSSES):
        made_for = "one class" if name in LOSSES else "several classes"
        raise InputError(
            f"The loss {name} is for {made_for}, but the network has {classes} (data.classes). "
            f"Choose one of: {', '.join(sorted(choices))}."
        )
    return choose("loss", name, choices)
