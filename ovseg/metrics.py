"""The one definition of every score, for training, evaluation and reports alike.

Two families, never mixed: the baseline's scores are soft (on probabilities) and taken over a whole batch; the hard
scores are of each image, on `probs > 0.5`. Empty masks: a hard score whose denominator is zero (Dice and IoU where both
maps are empty, sensitivity where the mask is, precision where the prediction is) is NaN, averages leave NaN out, and
the count of images behind an average is reported. An empty mask with a prediction has Dice and IoU 0.
"""

import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric
from torchmetrics.classification import BinaryJaccardIndex

HARD_SCORES = ("dice", "iou", "sensitivity", "specificity", "precision")
TINY = 1e-7  # Keras' epsilon, which guards the baseline's quotients


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
        raise ValueError(f"pred is {tuple(pred.shape)} and mask {tuple(mask.shape)}, expected one shape.")
    pred, mask = pred.bool().flatten(1), mask.bool().flatten(1)
    hit, false, missed = (pred & mask).sum(1), (pred & ~mask).sum(1), (~pred & mask).sum(1)
    rest = pred.shape[1] - hit - false - missed
    return {
        "dice": 2 * hit / (2 * hit + false + missed),
        "iou": hit / (hit + false + missed),
        "sensitivity": hit / (hit + missed),
        "specificity": rest / (rest + false),
        "precision": hit / (hit + false),
    }


def lesion(logits: Tensor) -> Tensor:
    """Predicted lesion at probability above 0.5, bool, the shape of the logits."""
    return logits > 0


class OnlineScores(nn.Module):
    """Scores of a split, gathered batch by batch and summed over processes.

    `loss` is the mean over images, `dice_coef` the mean over batches (both as Keras' evaluate does), `dice`, `iou`,
    `sensitivity`, `specificity` and `precision` are means over images, `iou_pooled` sums intersections and unions over
    the whole split.

    Args:
        sync: sum over processes; false where one process alone has the whole split.
    """

    def __init__(self, sync: bool = True) -> None:
        super().__init__()
        names = ("loss", "dice_coef", *HARD_SCORES)
        self.means = nn.ModuleDict(
            {
                name: MeanMetric(nan_strategy="ignore" if name in HARD_SCORES else "disable", sync_on_compute=sync)
                for name in names
            }
        )
        self.pooled = BinaryJaccardIndex(
            threshold=0.5, ignore_index=None, validate_args=False, zero_division=0, sync_on_compute=sync
        )

    def update(self, loss: Tensor, logits: Tensor, mask: Tensor, counted: bool = True) -> None:
        """Add a batch: its loss, logits (N, 1, H, W) and mask 0/1 of the same shape; uncounted ones weigh nothing."""
        loss, coef = loss.detach(), dice_coef(logits.detach().float().sigmoid(), mask)
        logits, mask = (logits.detach(), mask) if counted else (logits.detach()[:0], mask[:0])
        self.means["loss"].update(loss.expand(len(logits)))  # "disable" drops weights (torchmetrics 1.9)
        self.means["dice_coef"].update(coef.expand(int(counted)))
        pred = lesion(logits)
        for name, values in hard_scores(pred, mask).items():
            self.means[name].update(values)
        self.pooled.update(pred.long(), mask.long())

    def compute(self) -> dict[str, Tensor]:
        """Name -> scalar; NaN where no image had a value."""
        return {name: mean.compute() for name, mean in self.means.items()} | {"iou_pooled": self.pooled.compute()}

    def reset(self) -> None:
        """Forget all batches."""
        for metric in (*self.means.values(), self.pooled):
            metric.reset()


def count_images(scores: Tensor) -> int:
    """How many images an average of `scores` (N,) stands for: NaN is left out."""
    return int((~torch.isnan(scores)).sum())
