"""The one definition of every score, for training, evaluation and reports alike.

Two families, never mixed: the baseline's scores are soft (on probabilities) and taken over a whole batch; the hard
scores are of each image, on `probs > 0.5`. Empty masks: a hard score whose denominator is zero (Dice and IoU where both
maps are empty, sensitivity where the mask is, precision where the prediction is) is NaN, averages leave NaN out, and
the count of images behind an average is reported. An empty mask with a prediction has Dice and IoU 0.

Multi-class maps hold ids, 0 for background and 1, 2, ... for the categories. Whatever is not background is lesion, so
every score above has its meaning there too; the same rules hold for each category against all else.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric
from torchmetrics.classification import BinaryJaccardIndex

from ovseg.core.registry import choose

TINY = 1e-7  # Keras' epsilon, which guards the baseline's quotients


@dataclass(frozen=True)
class Score:
    """What reports, curves, checkpoints and searches need to know of a score.

    Attributes:
        label: for people.
        best: "max" where higher is better, else "min".
        of_image: the score of each image from its pixels that are lesion in both maps, in the prediction alone, in the
            mask alone, in neither; None for a score that is not a mean over images.
        in_curves: drawn after every epoch.
        at_original_size: also computed at the picture's size before it was prepared.
        of_categories: logged only where there are more classes than one.
    """

    label: str
    best: str = "max"
    of_image: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor] | None = None
    in_curves: bool = False
    at_original_size: bool = False
    of_categories: bool = False


SCORES = {
    "loss": Score("loss", best="min"),
    "dice_coef": Score("dice_coef (soft, per batch)", in_curves=True),
    "dice": Score(
        "Dice",
        of_image=lambda hit, false, missed, rest: 2 * hit / (2 * hit + false + missed),
        in_curves=True,
        at_original_size=True,
    ),
    "iou": Score(
        "IoU",
        of_image=lambda hit, false, missed, rest: hit / (hit + false + missed),
        in_curves=True,
        at_original_size=True,
    ),
    "sensitivity": Score(
        "sensitivity", of_image=lambda hit, false, missed, rest: hit / (hit + missed)
    ),
    "specificity": Score(
        "specificity", of_image=lambda hit, false, missed, rest: rest / (rest + false)
    ),
    "precision": Score("precision", of_image=lambda hit, false, missed, rest: hit / (hit + false)),
    "iou_pooled": Score("IoU pooled", in_curves=True),
    "dice_categories": Score(
        "category Dice, mean of categories", in_curves=True, of_categories=True
    ),
    "iou_pooled_categories": Score("category IoU pooled, mean of categories", of_categories=True),
}
HARD_SCORES = tuple(name for name, score in SCORES.items() if score.of_image)
ORIGINAL_SCORES = tuple(
    f"{name}_original" for name, score in SCORES.items() if score.at_original_size
)
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
    """The baseline's soft Dice over a batch, (2 sum(y p) + 1) / (sum y + sum p + 1); tensors of one shape -> scalar."""
    probs, mask = probs.float(), mask.float()
    return (2 * (mask * probs).sum() + 1) / (mask.sum() + probs.sum() + 1)


def iou_coef(probs: Tensor, mask: Tensor) -> Tensor:
    """The baseline's soft IoU over a batch, sum(y p) / sum(y + p - y p) -> scalar, 0 where both are empty."""
    probs, mask = probs.float(), mask.float()
    return (mask * probs).sum() / (mask + probs - mask * probs).sum().clamp_min(TINY)


def sensitivity(probs: Tensor, mask: Tensor) -> Tensor:
    """The baseline's sensitivity over a batch, sum(round(y p)) / sum(round(y)) -> scalar."""
    probs, mask = probs.float(), mask.float()
    return (mask * probs).round().sum() / (mask.round().sum() + TINY)


def specificity(probs: Tensor, mask: Tensor) -> Tensor:
    """The baseline's specificity over a batch, sum(round((1 - y)(1 - p))) / sum(round(1 - y)) -> scalar."""
    return sensitivity(1 - probs.float(), 1 - mask.float())


def hard_scores(pred: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """Dice, IoU, sensitivity, specificity and precision of every image.

    Args:
        pred: predicted lesion, bool, (N, 1, H, W).
        mask: reference lesion, bool or 0/1, same shape.

    Returns:
        `HARD_SCORES` -> float32 (N,) in 0..1, NaN where the denominator is zero.

    Raises:
        ValueError: the shapes differ.
    """
    if pred.shape != mask.shape:
        raise ValueError(
            f"pred is {tuple(pred.shape)} and mask {tuple(mask.shape)}, expected one shape."
        )
    pred, mask = pred.bool().flatten(1), mask.bool().flatten(1)
    hit, false, missed = (pred & mask).sum(1), (pred & ~mask).sum(1), (~pred & mask).sum(1)
    return scores_of_counts(hit, false, missed, pred.shape[1] - hit - false - missed)


def scores_of_counts(hit: Tensor, false: Tensor, missed: Tensor, rest: Tensor) -> dict[str, Tensor]:
    """`HARD_SCORES` from pixels that are lesion in both maps, in the prediction, in the mask alone, in neither."""
    return {name: SCORES[name].of_image(hit, false, missed, rest) for name in HARD_SCORES}


def predict(logits: Tensor) -> Tensor:
    """The map that logits (N, classes, H, W) stand for, (N, 1, H, W).

    Bool for one class, lesion at probability above 0.5; else uint8 ids, the most probable class. `predict(logits) > 0`
    is the lesion of either.
    """
    return logits > 0 if logits.shape[1] == 1 else logits.argmax(1, keepdim=True).to(torch.uint8)


def lesion_probs(logits: Tensor) -> Tensor:
    """Lesion probability, float32 (N, 1, H, W): of the one class, or 1 - that of the background."""
    logits = logits.float()
    return logits.sigmoid() if logits.shape[1] == 1 else 1 - logits.softmax(1)[:, :1]


def confusion(pred: Tensor, mask: Tensor, classes: int) -> Tensor:
    """Pixels of every image by class, int64 (N, reference, prediction), from maps of ids below `classes` (N, 1, H, W).

    Every score of a category follows from these counts.
    """
    image = torch.arange(len(mask), device=mask.device)[:, None]
    cells = (image * classes + mask.flatten(1).long()) * classes + pred.flatten(1).long()
    return torch.bincount(cells.flatten(), minlength=len(mask) * classes**2).view(
        -1, classes, classes
    )


def category_scores(counts: Tensor) -> dict[str, Tensor]:
    """Dice and IoU of each category against all else, from counts (..., classes, classes) as `confusion` has them.

    Returns:
        `dice`, `iou` -> float32 (..., classes - 1) in 0..1 without the background; NaN where a category is in neither
        map, 0 where it is in one of them only.
    """
    hit = counts.diagonal(dim1=-2, dim2=-1)
    both = counts.sum(-1) + counts.sum(-2)
    return {"dice": (2 * hit / both)[..., 1:], "iou": (hit / (both - hit))[..., 1:]}


def main_category(areas: Tensor) -> Tensor:
    """The category that covers most pixels, from areas (N, classes) with the background first; 0 where none does."""
    largest, category = areas[:, 1:].max(1)
    return torch.where(largest > 0, category + 1, 0)


class CategoryScores(Metric):
    """Scores of each category over a split, summed over processes.

    Args:
        classes: background and categories.
        sync: see `OnlineScores`.
    """

    full_state_update = False

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
        """`dice`: mean over the `images` that have a value; `iou_pooled`: of the summed pixels; each (classes - 1,)."""
        iou = category_scores(self.counts)["iou"]
        return {"dice": self.dice / self.images, "images": self.images, "iou_pooled": iou}


class OnlineScores(nn.Module):
    """Scores of a split, gathered batch by batch and summed over processes.

    `loss` is the mean over images, `dice_coef` the mean over batches (both as Keras' evaluate does), `dice`, `iou`,
    `sensitivity`, `specificity` and `precision` are means over images, `iou_pooled` sums intersections and unions over
    the whole split. All of these are of the lesion, whatever its category.

    With more classes than one there are also `dice_category_<id>`, the mean over the images with that category in
    either map, `dice_categories` and `iou_pooled_categories`, the means over the categories that have a value.

    Args:
        classes: 1, or background and categories.
        sync: sum over processes; false where one process alone has the whole split.
    """

    def __init__(self, classes: int = 1, sync: bool = True) -> None:
        super().__init__()
        self.categories = CategoryScores(classes, sync) if classes > 1 else None
        names = ("loss", "dice_coef", *HARD_SCORES)
        self.means = nn.ModuleDict(
            {
                name: MeanMetric(
                    nan_strategy="ignore" if name in HARD_SCORES else "disable",
                    sync_on_compute=sync,
                )
                for name in names
            }
        )
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
        """Add a batch: loss, logits (N, classes, H, W) and mask of ids (N, 1, H, W); uncounted ones weigh nothing.

        Hard scores are of `pred`, a map of ids (N, 1, H, W), where it is not what `predict` makes of the logits.
        """
        loss, logits = loss.detach(), logits.detach()
        coef = dice_coef(lesion_probs(logits), mask > 0)
        logits, mask = (logits, mask) if counted else (logits[:0], mask[:0])
        self.means["loss"].update(
            loss.expand(len(logits))
        )  # "disable" drops weights (torchmetrics 1.9)
        self.means["dice_coef"].update(coef.expand(int(counted)))
        pred = predict(logits) if pred is None else pred
        for name, values in hard_scores(pred, mask).items():
            self.means[name].update(values)
        self.pooled.update((pred > 0).long(), (mask > 0).long())
        if self.categories is not None:
            self.categories.update(pred, mask)

    def compute(self) -> dict[str, Tensor]:
        """Name -> scalar; NaN where no image had a value."""
        values = {name: mean.compute() for name, mean in self.means.items()} | {
            "iou_pooled": self.pooled.compute()
        }
        if self.categories is not None:
            found = self.categories.compute()
            values |= {
                f"{name}_categories": found[name].nanmean() for name in ("dice", "iou_pooled")
            }
            values |= {f"dice_category_{i}": dice for i, dice in enumerate(found["dice"], 1)}
        return values

    def reset(self) -> None:
        """Forget all batches."""
        for metric in (*self.means.values(), self.pooled, self.categories):
            if metric is not None:
                metric.reset()


def count_images(scores: Tensor) -> int:
    """How many images an average of `scores` (N,) stands for: NaN is left out."""
    return int((~torch.isnan(scores)).sum())
