"""The definition of every score, for training, evaluation and reports alike.

There are two families, which are never mixed. The baseline's scores are soft (on probabilities) and
taken over a whole batch. The hard scores are those of each image, on `probs > 0.5`.

Empty masks: a hard score whose denominator is zero is NaN (Dice and IoU where both maps are empty,
sensitivity where the mask is empty, precision where the prediction is empty). Averages leave NaN
out, and reports give the number of images behind an average. An empty mask with a prediction has
Dice and IoU 0.

Multi-class maps hold ids, 0 for background and 1, 2, ... for the categories. Whatever is not
background is lesion, so every score above has its meaning there too. The same rules hold for each
category against all else.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric
from torchmetrics.classification import BinaryJaccardIndex

from ovseg.core.registry import choose

EPSILON = 1e-7  # Keras' epsilon, with which the baseline avoids division by zero


@dataclass(frozen=True)
class Score:
    """What reports, curves, checkpoints and searches need to know about a score.

    Attributes:
        label: name for people.
        best: "max" where higher is better, else "min".
        of_image: computes the score of each image from its numbers of pixels that are lesion in
            both maps, in the prediction only, in the mask only, and in neither; None for a score
            that is not a mean over images.
        in_curves: whether it is drawn after every epoch.
        of_categories: whether it is logged only with more than one class.
    """

    label: str
    best: str = "max"
    of_image: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor] | None = None
    in_curves: bool = False
    of_categories: bool = False


# Every score by its name in logs, tables and JSON.
SCORES = {
    "loss": Score("loss", best="min"),
    "dice_coef": Score("dice_coef (soft, per batch)", in_curves=True),
    "dice": Score(
        "Dice",
        of_image=lambda both, pred, mask, rest: 2 * both / (2 * both + pred + mask),
        in_curves=True,
    ),
    "iou": Score(
        "IoU",
        of_image=lambda both, pred, mask, rest: both / (both + pred + mask),
        in_curves=True,
    ),
    "sensitivity": Score(
        "sensitivity", of_image=lambda both, pred, mask, rest: both / (both + mask)
    ),
    "specificity": Score(
        "specificity", of_image=lambda both, pred, mask, rest: rest / (rest + pred)
    ),
    "precision": Score(
        "precision",
        of_image=lambda both, pred, mask, rest: both / (both + pred),
    ),
    "iou_pooled": Score("IoU pooled", in_curves=True),
    "dice_categories": Score(
        "category Dice, mean of categories", in_curves=True, of_categories=True
    ),
    "iou_pooled_categories": Score("category IoU pooled, mean of categories", of_categories=True),
}
HARD_SCORES = tuple(name for name, score in SCORES.items() if score.of_image)
# The same at the size that an image had before it was prepared.
ORIGINAL_SCORES = tuple(f"{name}_original" for name in HARD_SCORES)
# Scores of outlines, at the original size only; see `ovseg.evaluation.distances`.
SURFACE_SCORES = {
    "hd95": Score("HD95 (pixels)", best="min"),
    "assd": Score("ASSD (pixels)", best="min"),
    "nsd": Score("NSD (tolerance in pixels)"),
}
# The same where the spacing of the pixels is known.
SURFACE_SCORES_MM = {
    "hd95_mm": Score("HD95 (mm)", best="min"),
    "assd_mm": Score("ASSD (mm)", best="min"),
    "nsd_mm": Score("NSD (tolerance in mm)"),
}
POOLED_SCORES = tuple(name for name, score in SCORES.items() if not score.of_image)
# What training logs, by the name that can be monitored.
LOGGED_SCORES = {
    "train_loss": SCORES["loss"],
    "train_dice_coef": SCORES["dice_coef"],
    **{f"val_{name}": score for name, score in SCORES.items()},
}


def monitor_mode(monitor: str) -> str:
    """`min` for a logged loss, `max` for a logged score.

    Raises:
        InputError: nothing of that name is logged; the message lists what is.
    """
    return choose("monitor", monitor, LOGGED_SCORES).best


def dice_coef(probs: Tensor, mask: Tensor) -> Tensor:
    """The baseline's soft Dice over a batch, (2 sum(y p) + 1) / (sum y + sum p + 1).

    Args:
        probs: lesion probabilities, any shape.
        mask: reference 0/1, same shape.

    Returns:
        float32 scalar; 1 where both are empty.
    """
    probs = probs.float()
    mask = mask.float()
    return (2 * (mask * probs).sum() + 1) / (mask.sum() + probs.sum() + 1)


def iou_coef(probs: Tensor, mask: Tensor) -> Tensor:
    """The baseline's soft IoU over a batch, sum(y p) / sum(y + p - y p).

    Args:
        probs: lesion probabilities, any shape.
        mask: reference 0/1, same shape.

    Returns:
        float32 scalar; 0 where both are empty.
    """
    probs = probs.float()
    mask = mask.float()
    union = (mask + probs - mask * probs).sum()
    return (mask * probs).sum() / union.clamp_min(EPSILON)


def sensitivity(probs: Tensor, mask: Tensor) -> Tensor:
    """The baseline's sensitivity over a batch, sum(round(y p)) / sum(round(y)), a scalar."""
    probs = probs.float()
    mask = mask.float()
    return (mask * probs).round().sum() / (mask.round().sum() + EPSILON)


def specificity(probs: Tensor, mask: Tensor) -> Tensor:
    """The baseline's specificity, sum(round((1 - y)(1 - p))) / sum(round(1 - y)), a scalar."""
    return sensitivity(1 - probs.float(), 1 - mask.float())


def hard_scores(pred: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """Dice, IoU, sensitivity, specificity and precision of every image.

    Args:
        pred: predicted lesion, bool, (N, 1, H, W).
        mask: reference lesion, bool or 0/1, same shape.

    Returns:
        Each of `HARD_SCORES`, float32 (N,) in 0..1; NaN where the denominator is zero.

    Raises:
        ValueError: the shapes differ.
    """
    if pred.shape != mask.shape:
        raise ValueError(
            f"pred is {tuple(pred.shape)} and mask {tuple(mask.shape)}, expected one shape."
        )
    pred = pred.bool().flatten(1)
    mask = mask.bool().flatten(1)
    both = (pred & mask).sum(1)
    pred_only = (pred & ~mask).sum(1)
    mask_only = (~pred & mask).sum(1)
    neither = pred.shape[1] - both - pred_only - mask_only
    return scores_of_counts(both, pred_only, mask_only, neither)


def scores_of_counts(
    both: Tensor, pred_only: Tensor, mask_only: Tensor, neither: Tensor
) -> dict[str, Tensor]:
    """`HARD_SCORES` from numbers of pixels.

    Args:
        both: lesion in both maps.
        pred_only: lesion in the prediction only.
        mask_only: lesion in the mask only.
        neither: lesion in neither map; all four of one shape.
    """
    return {
        name: score.of_image(both, pred_only, mask_only, neither)
        for name, score in SCORES.items()
        if score.of_image is not None
    }


def predict(logits: Tensor) -> Tensor:
    """The map that logits stand for.

    Args:
        logits: (N, classes, H, W).

    Returns:
        (N, 1, H, W): bool for one class, lesion at a probability above 0.5; else uint8 ids of the
        most probable class. `predict(logits) > 0` is the lesion of either.
    """
    if logits.shape[1] == 1:
        return logits > 0
    return logits.argmax(1, keepdim=True).to(torch.uint8)


def lesion_probs(logits: Tensor) -> Tensor:
    """Lesion probability: of the one class, or 1 - that of the background.

    Args:
        logits: (N, classes, H, W).

    Returns:
        float32 (N, 1, H, W).
    """
    logits = logits.float()
    if logits.shape[1] == 1:
        return logits.sigmoid()
    return 1 - logits.softmax(1)[:, :1]


def confusion(pred: Tensor, mask: Tensor, classes: int) -> Tensor:
    """Numbers of pixels by class, from which every score of a category follows.

    Args:
        pred: predicted ids below `classes`, (N, 1, H, W).
        mask: reference ids below `classes`, same shape.
        classes: background and categories.

    Returns:
        int64 (N, reference, prediction).
    """
    # One bin for every image, reference and prediction, in this order.
    image = torch.arange(len(mask), device=mask.device)[:, None]
    row = image * classes + mask.flatten(1).long()
    bins = row * classes + pred.flatten(1).long()
    counts = torch.bincount(bins.flatten(), minlength=len(mask) * classes**2)
    return counts.view(-1, classes, classes)


def category_scores(counts: Tensor) -> dict[str, Tensor]:
    """Dice and IoU of each category against all else.

    Args:
        counts: (..., classes, classes), as `confusion` returns them.

    Returns:
        `dice` and `iou`, float32 (..., classes - 1) in 0..1 without the background; NaN where a
        category is in neither map, 0 where it is in one of them only.
    """
    both = counts.diagonal(dim1=-2, dim2=-1)
    areas = counts.sum(-1) + counts.sum(-2)
    dice = 2 * both / areas
    iou = both / (areas - both)
    return {"dice": dice[..., 1:], "iou": iou[..., 1:]}


def main_category(areas: Tensor) -> Tensor:
    """The category that covers most pixels of each image.

    Args:
        areas: numbers of pixels, (N, classes), the background first.

    Returns:
        int64 (N,); 0 where no category is present.
    """
    largest, category = areas[:, 1:].max(1)
    return torch.where(largest > 0, category + 1, 0)


class CategoryScores(Metric):
    """Scores of each category over a split, summed over processes.

    Args:
        classes: background and categories.
        sync: see `OnlineScores`.
    """

    full_state_update = False
    dice: Tensor
    images: Tensor
    counts: Tensor

    def __init__(self, classes: int, sync: bool = True) -> None:
        super().__init__(sync_on_compute=sync)
        self.classes = classes
        self.add_state("dice", torch.zeros(classes - 1), "sum")
        self.add_state("images", torch.zeros(classes - 1, dtype=torch.long), "sum")
        self.add_state("counts", torch.zeros(classes, classes, dtype=torch.long), "sum")

    def update(self, pred: Tensor, mask: Tensor) -> None:
        """Add a batch of id maps (N, 1, H, W)."""
        counts = confusion(pred, mask, self.classes)
        dice = category_scores(counts)["dice"]
        self.dice += dice.nansum(0)
        self.images += (~dice.isnan()).sum(0)
        self.counts += counts.sum(0)

    def compute(self) -> dict[str, Tensor]:
        """The scores of the batches since the last reset.

        Returns:
            Each (classes - 1,): `dice`, the mean over the images that have a value; `images`, their
            number; `iou_pooled`, of the pixels of all images together.
        """
        iou = category_scores(self.counts)["iou"]
        return {"dice": self.dice / self.images, "images": self.images, "iou_pooled": iou}


class OnlineScores(nn.Module):
    """Scores of a split, gathered batch by batch and summed over processes.

    `loss` is the mean over images and `dice_coef` the mean over batches (both as Keras' evaluate
    does). `dice`, `iou`, `sensitivity`, `specificity` and `precision` are means over images.
    `iou_pooled` sums intersections and unions over the whole split. All of these are of the lesion,
    whatever its category.

    With more classes than one there are also `dice_category_<id>`, the mean over the images with
    that category in either map, and `dice_categories` and `iou_pooled_categories`, the means over
    the categories that have a value.

    Args:
        classes: 1, or background and categories.
        sync: sum over processes; false where one process alone has the whole split.
    """

    def __init__(self, classes: int = 1, sync: bool = True) -> None:
        super().__init__()
        self.categories = CategoryScores(classes, sync) if classes > 1 else None
        self.means = nn.ModuleDict()
        for name in ("loss", "dice_coef", *HARD_SCORES):
            # A NaN of a hard score is an image without a value; a NaN of a loss must be seen.
            if name in HARD_SCORES:
                self.means[name] = MeanMetric(nan_strategy="ignore", sync_on_compute=sync)
            else:
                self.means[name] = MeanMetric(nan_strategy="disable", sync_on_compute=sync)
        self.pooled = BinaryJaccardIndex(
            threshold=0.5,
            ignore_index=None,
            validate_args=False,
            zero_division=0,
            sync_on_compute=sync,
        )

    def update(
        self,
        loss: Tensor,
        logits: Tensor,
        mask: Tensor,
        counted: bool = True,
        pred: Tensor | None = None,
    ) -> None:
        """Add a batch.

        Args:
            loss: scalar.
            logits: (N, classes, H, W).
            mask: reference ids, (N, 1, H, W).
            counted: false for a batch that another process has counted; it weighs nothing.
            pred: predicted ids (N, 1, H, W) for the hard scores, where they are not what `predict`
                makes of the logits.
        """
        loss = loss.detach()
        logits = logits.detach()
        coef = dice_coef(lesion_probs(logits), mask > 0)
        if not counted:
            logits = logits[:0]
            mask = mask[:0]
        # With "disable" torchmetrics 1.9 ignores weights, so the loss is repeated for each image.
        means = self._means()
        means["loss"].update(loss.expand(len(logits)))
        means["dice_coef"].update(coef.expand(int(counted)))
        if pred is None:
            pred = predict(logits)
        for name, values in hard_scores(pred, mask).items():
            means[name].update(values)
        self.pooled.update((pred > 0).long(), (mask > 0).long())
        if self.categories is not None:
            self.categories.update(pred, mask)

    def compute(self) -> dict[str, Tensor]:
        """Name -> scalar; NaN where no image had a value."""
        values = {name: mean.compute() for name, mean in self._means().items()}
        values["iou_pooled"] = self.pooled.compute()
        if self.categories is not None:
            found = self.categories.compute()
            for name in ("dice", "iou_pooled"):
                values[f"{name}_categories"] = found[name].nanmean()
            for category, dice in enumerate(found["dice"], 1):
                values[f"dice_category_{category}"] = dice
        return values

    def reset(self) -> None:
        """Forget all batches."""
        for mean in self._means().values():
            mean.reset()
        self.pooled.reset()
        if self.categories is not None:
            self.categories.reset()

    def _means(self) -> dict[str, MeanMetric]:
        return cast("dict[str, MeanMetric]", dict(self.means.items()))
