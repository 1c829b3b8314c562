"""Scores of a cross-validation: every image of train and valid, by the one network that has not seen it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ovseg.core.console import print_table
from ovseg.core.files import write_json, write_table
from ovseg.core.plots import draw_boxes
from ovseg.core.statistics import ratio_interval
from ovseg.data.manifest import read_manifest
from ovseg.evaluation.evaluate import Evaluation, pooled_iou, summarise
from ovseg.metrics import HARD_SCORES, ORIGINAL_SCORES

NOTE = "each network's best epoch was chosen on the images it is scored on, so the scores are slightly too good"


def score_folds(runs: Sequence[Path], output: Path, device: str = "auto") -> dict[str, Any]:
    """Score each fold's best checkpoint, which users will use, on the fold that it held out.

    The best epoch was chosen on the same images, so the scores are slightly too good; the summary's `note` says so.

    Writes `out_of_fold.csv` (a row an image: `stem`, `fold` and what `per_image.csv` of `evaluate` has),
    `summary.json` and `out_of_fold.png`, the Dice of each fold.

    Args:
        runs: run folders of folds 0, 1, ...
        output: an existing folder.
        device: see `ovseg.inference.predictor.choose_device`.

    Returns:
        The summary: `data`, `leakage`, `note`, and those of `summarise_folds`.

    Raises:
        InputError: see `ovseg.evaluation.evaluate.Evaluation`.
    """
    tables, folds = [], []
    for fold, run in enumerate(runs):
        evaluation = Evaluation(
            run, "valid", device=device, postprocessing=False
        )  # post-processing was chosen on these images
        table, summary = evaluation.run()
        table.insert(1, "fold", fold)
        tables.append(table)
        folds.append(
            {"fold": fold, "run": run.relative_to(output).as_posix(), "epoch": summary["epoch"]}
        )
    table = pd.concat(tables, ignore_index=True)
    items = read_manifest(evaluation.datamodule.root).get("items", [])
    groups = {item["stem"]: item["group"] for item in items if "group" in item}
    summary = {
        "data": summary["data"],
        "leakage": summary["leakage"],
        "note": NOTE,
        **summarise_folds(table, groups),
    }
    summary["per_fold"] = [
        {**fold, **scores} for fold, scores in zip(folds, summary["per_fold"], strict=True)
    ]
    write_table(output / "out_of_fold.csv", table)
    boxes = {
        f"fold {fold}": part["dice"].dropna().to_numpy() for fold, part in table.groupby("fold")
    }
    draw_boxes(boxes, "Dice per image of the held-out images", output / "out_of_fold.png")
    write_json(output / "summary.json", summary)
    return summary


def summarise_folds(table: pd.DataFrame, groups: dict[str, int]) -> dict[str, Any]:
    """The scores over all folds, and those of each.

    Args:
        table: a row an image, see `score_folds`.
        groups: group of near-duplicates of each stem; empty where they are not known.

    Returns:
        `images`; `scores`, see `ovseg.evaluation.evaluate.summarise`, and of `iou_pooled` `value` and `ci95`; where groups are
        known, `ci95_groups` of each is the interval that resamples whole groups, whose images are not independent;
        `per_fold`: `images`, mean `dice` and `iou`, `iou_pooled`. No interval says what other trainings or another
        dealing would give: the folds' networks share most of their images.
    """
    areas = pd.DataFrame(
        {"hit": table["hit_pixels"], "union": table["lesion_pixels"] + table["pred_pixels"]}
    )
    areas["union"] -= areas["hit"]
    scores = summarise(table[[name for name in (*HARD_SCORES, *ORIGINAL_SCORES) if name in table]])
    scores["iou_pooled"] = {
        "value": pooled_iou(table),
        "ci95": ratio_interval(areas["hit"].to_numpy(), areas["union"].to_numpy()),
    }
    if groups:
        units = table["stem"].map(groups)
        for name in scores.keys() & set(table):
            by_group = table[name].groupby(units)
            scores[name]["ci95_groups"] = ratio_interval(
                by_group.sum().to_numpy(), by_group.count().to_numpy()
            )
        sums = areas.groupby(units).sum()
        scores["iou_pooled"]["ci95_groups"] = ratio_interval(
            sums["hit"].to_numpy(), sums["union"].to_numpy()
        )
    per_fold = []
    for _, part in table.groupby("fold"):
        means = {
            name: None if np.isnan(part[name].mean()) else float(part[name].mean())
            for name in ("dice", "iou")
        }
        per_fold.append({"images": len(part), **means, "iou_pooled": pooled_iou(part)})
    return {"images": len(table), "scores": scores, "per_fold": per_fold}


def print_folds(summary: dict[str, Any]) -> None:
    """The summary as a table on the terminal."""
    rows = []
    for fold in summary["per_fold"]:
        scores = [_text(fold[name]) for name in ("dice", "iou", "iou_pooled")]
        rows.append((f"fold {fold['fold']}", str(fold["images"]), *scores))
    dice, iou, pooled = (summary["scores"][name] for name in ("dice", "iou", "iou_pooled"))
    rows.append(
        (
            "all",
            str(summary["images"]),
            _text(dice["mean"]),
            _text(iou["mean"]),
            _text(pooled["value"]),
        )
    )
    for name, title in {
        "ci95": "95 % interval over images",
        "ci95_groups": "95 % interval over groups",
    }.items():
        bounds = [score.get(name) for score in (dice, iou, pooled)]
        if any(bounds):
            rows.append(
                (title, "", *("" if b is None else "{:.4f} .. {:.4f}".format(*b) for b in bounds))
            )
    leakage = "LEAKAGE, near-duplicates in two splits: " if summary["leakage"] else ""
    title = (
        f"{leakage}out of fold: {summary['images']} images of {summary['data']}; {summary['note']}"
    )
    print_table(("", "images", "Dice per image", "IoU per image", "IoU pooled"), rows, title)


def _text(value: float | None) -> str:
    return "none" if value is None else f"{value:.4f}"
