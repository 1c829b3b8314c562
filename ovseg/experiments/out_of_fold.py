"""Scores of a cross-validation: each image of train and valid, by the network that held it out."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ovseg.core.console import format_interval, format_score, print_table
from ovseg.core.files import write_json, write_table
from ovseg.core.plots import draw_boxes
from ovseg.core.runs import RunFolder
from ovseg.core.statistics import ratio_interval
from ovseg.data.manifest import image_groups
from ovseg.evaluation.evaluate import Evaluation
from ovseg.evaluation.summary import pooled_iou, summarise, summarise_values
from ovseg.metrics import HARD_SCORES, ORIGINAL_SCORES
from ovseg.training.callbacks.checkpoints import EPOCH

BEST_EPOCH_NOTE = (
    "each network's best epoch was chosen on the images it is scored on, "
    "so the scores are slightly too good"
)
LAST_EPOCH_NOTE = "of the last epoch of each training, which no image chose"
INTERVALS = {
    "ci95": "95 % interval over images",
    "ci95_groups": "95 % interval over groups",
}


def score_folds(output: Path, monitor: str, device: str = "auto") -> dict[str, Any]:
    """Score the best checkpoint of each fold on the images that the fold held out.

    If the same images chose the best epoch, the scores are slightly too good; the summary's `note`
    says whether they did. Post-processing is left out: that of the ensemble may have been chosen on
    them as well.

    Writes `out_of_fold.csv` (a row an image: `stem`, `fold` and the columns of `per_image.csv` of
    `evaluate` but `seconds`), `summary.json` and `out_of_fold.png`, the Dice of each fold.

    Args:
        output: folder of the cross-validation; its `ensemble.json` names the runs of folds 0, 1,
            ...
        monitor: of the best checkpoint, see `ovseg.training.callbacks.BestCheckpoint`.
        device: see `ovseg.core.device.choose_device`.

    Returns:
        The summary: `data`, `leakage`, `note`, and those of `summarise_folds`.

    Raises:
        InputError: see `ovseg.evaluation.evaluate.Evaluation`.
    """
    evaluation = Evaluation(output, "valid", device=device, postprocessing=False)
    # What the machine took is no result: the table of a resumed run is that of another.
    table = evaluation.run()[0].drop(columns="seconds")
    table.insert(1, "fold", evaluation.folds(table["stem"]))

    root = evaluation.datamodule.root
    scores = summarise_folds(table, image_groups(root))
    for fold, (member, row) in enumerate(zip(evaluation.members, scores["per_fold"], strict=True)):
        run = RunFolder.of_checkpoint(member.path).path
        row["fold"] = fold
        row["run"] = run.relative_to(output).as_posix()
        row["epoch"] = member.epoch
    summary = {
        "data": str(root),
        "leakage": evaluation.datamodule.leakage,
        "note": LAST_EPOCH_NOTE if monitor == EPOCH else BEST_EPOCH_NOTE,
        **scores,
    }

    write_table(output / "out_of_fold.csv", table)
    dice = {}
    for fold, part in table.groupby("fold"):
        dice[f"fold {fold}"] = part["dice"].dropna().to_numpy()
    draw_boxes(dice, "Dice per image of the held-out images", output / "out_of_fold.png")
    write_json(output / "summary.json", summary)
    return summary


def summarise_folds(table: pd.DataFrame, groups: dict[str, int | str]) -> dict[str, Any]:
    """The scores over all folds, and those of each.

    No interval says what other trainings or other folds would give: the networks of the folds share
    most of their training images.

    Args:
        table: a row an image, see `score_folds`.
        groups: group of near-duplicates of each stem; empty if they are not known.

    Returns:
        `images`; `scores`, see `ovseg.evaluation.evaluate.summarise`, with `value` and `ci95` of
        `iou_pooled`; `per_fold`: `images`, mean `dice` and `iou`, and `iou_pooled`. If groups are
        known each score has `ci95_groups` too: the interval that resamples whole groups, whose
        images are not independent.
    """
    names = [name for name in (*HARD_SCORES, *ORIGINAL_SCORES) if name in table]
    scores = summarise(table[names])

    areas = _overlap_areas(table)
    scores["iou_pooled"] = {
        "value": pooled_iou(table),
        "ci95": ratio_interval(areas["hit"].to_numpy(), areas["union"].to_numpy()),
    }
    if groups:
        group_of_row = table["stem"].map(groups)
        for name in names:
            scores[name]["ci95_groups"] = summarise_values(table[name], group_of_row)["ci95"]
        sums = areas.groupby(group_of_row).sum()
        scores["iou_pooled"]["ci95_groups"] = ratio_interval(
            sums["hit"].to_numpy(), sums["union"].to_numpy()
        )

    per_fold = [_summarise_fold(part) for _, part in table.groupby("fold")]
    return {"images": len(table), "scores": scores, "per_fold": per_fold}


def _overlap_areas(table: pd.DataFrame) -> pd.DataFrame:
    """Pixels of intersection (`hit`) and `union` of prediction and mask, a row an image."""
    hit = table["hit_pixels"]
    union = table["lesion_pixels"] + table["pred_pixels"] - hit
    return pd.DataFrame({"hit": hit, "union": union})


def _summarise_fold(part: pd.DataFrame) -> dict[str, Any]:
    """Images, mean Dice and IoU (None if no image has that score) and pooled IoU of a fold."""
    summary: dict[str, Any] = {"images": len(part)}
    for name in ("dice", "iou"):
        mean = float(part[name].mean())
        summary[name] = None if np.isnan(mean) else mean
    summary["iou_pooled"] = pooled_iou(part)
    return summary


def print_folds(summary: dict[str, Any]) -> None:
    """Print the summary as a table: a row a fold, then all images and the intervals."""
    rows = []
    for fold in summary["per_fold"]:
        cells = [format_score(fold[name]) for name in ("dice", "iou", "iou_pooled")]
        rows.append((f"fold {fold['fold']}", str(fold["images"]), *cells))

    dice = summary["scores"]["dice"]
    iou = summary["scores"]["iou"]
    pooled = summary["scores"]["iou_pooled"]
    cells = [format_score(value) for value in (dice["mean"], iou["mean"], pooled["value"])]
    rows.append(("all", str(summary["images"]), *cells))

    for name, label in INTERVALS.items():
        intervals = [score.get(name) for score in (dice, iou, pooled)]
        if any(intervals):
            cells = [format_interval(interval) for interval in intervals]
            rows.append((label, "", *cells))

    title = f"out of fold: {summary['images']} images of {summary['data']}; {summary['note']}"
    if summary["leakage"]:
        title = f"LEAKAGE, near-duplicates in two splits: {title}"
    print_table(("", "images", "Dice per image", "IoU per image", "IoU pooled"), rows, title)
