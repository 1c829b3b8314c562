"""An evaluation as files: tables for programs, pictures and tables on the terminal for people."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from ovseg.core.console import format_interval, format_score, print_table
from ovseg.core.drawing import case_row, contact_sheet
from ovseg.core.errors import InputError, first_five
from ovseg.core.files import atomic_dir, write_image, write_json, write_table
from ovseg.core.plots import draw_boxes, draw_confusion, save_figure
from ovseg.core.registry import choose
from ovseg.core.runs import RunFolder
from ovseg.evaluation.calibration import describe_calibration, describe_flags
from ovseg.evaluation.evaluate import Evaluation
from ovseg.evaluation.figures import (
    draw_failures,
    draw_histogram,
    draw_reliability,
    draw_risk_coverage,
    draw_subgroups,
)
from ovseg.evaluation.page import count_confusion, write_report
from ovseg.evaluation.robustness import draw_robustness, measure_robustness
from ovseg.inference.labels import Postprocessing, to_dict
from ovseg.metrics import SCORES, SURFACE_SCORES, SURFACE_SCORES_MM


def evaluate(
    run: str | Path,
    split: str = "test",
    data: str | Path | None = None,
    output: str | Path | None = None,
    batch_size: int = 4,
    device: str = "auto",
    postprocessing: bool = True,
    overwrite: bool = False,
    mask_threshold: int | None = None,
    report: str = "full",
    robustness: int = 0,
    spacing: str | float | Path | None = None,
) -> dict[str, Any]:
    """Score a run on a split and write the result, as `ovseg evaluate` does.

    Args:
        run: run folder, checkpoint, or the folder of an ensemble.
        split: `train`, `valid` or `test`.
        data: prepared dataset; by default the one of training.
        output: folder to make; by default `evaluation` in the run folder, or `evaluation_<split>`.
        batch_size: images at a time, see `Evaluation`.
        device: `auto`, or a name such as `cpu` or `cuda`.
        postprocessing: apply the post-processing that the run folder holds, if any.
        overwrite: replace any earlier evaluation, see `report_evaluation`.
        mask_threshold: grey values of masks above it are lesion; None takes that of training.
        report: see `report_evaluation`.
        robustness: see `report_evaluation`.
        spacing: millimetres per pixel of the original pictures, one number for all, or a CSV of
            `stem,row_mm,column_mm`; adds distances and areas in millimetres.

    Returns:
        The summary, which is also written to `summary.json`.

    Raises:
        InputError: run, dataset, device or output can't be used.
    """
    choose("report", report, REPORTS)
    if robustness < 0:
        raise InputError(f"--robustness is {robustness}, expected 0 or more images.")
    run = Path(run)
    folder = Path(output) if output else RunFolder(run).evaluation(split)
    root = Path(data) if data else None
    evaluation = Evaluation(
        run, split, root, batch_size, device, postprocessing, mask_threshold, spacing
    )
    return report_evaluation(evaluation, folder, overwrite, report, robustness)


# How much is written besides tables and figures.
REPORTS = {"full": "the page report.html too", "minimal": "nothing more"}


def report_evaluation(
    evaluation: Evaluation,
    output: Path,
    overwrite: bool = False,
    report: str = "full",
    robustness: int = 0,
) -> dict[str, Any]:
    """Evaluate, and write the result.

    Writes `evaluation.csv`, `per_image.csv`, `summary.json`, `report.html`, `cases.png` and figures
    (`dice.png`, `failures.png`, `subgroups.png`, `reliability.png`, `risk_coverage.png`). Where the
    categories of the images are known, also `dice_categories.png`; for a run for categories also
    `confusion.png`, the category of each image against the predicted one.

    A result of the same checkpoint on the same data with the same post-processing is replaced;
    another result only with `overwrite`.

    Args:
        evaluation: what to run.
        output: folder to make; it appears when it is whole.
        overwrite: replace any earlier evaluation.
        report: `minimal` leaves the page `report.html` out; `full` writes it.
        robustness: number of images that are also scored under disturbances, which adds
            `robustness.csv` and `robustness.png`; 0 for none.

    Returns:
        The summary.

    Raises:
        InputError: `output` holds something else.
    """
    different = _compare_descriptions(output, evaluation.describe())
    if different and not overwrite:
        raise InputError(
            f"{output} holds an evaluation with another {first_five(different)}. Choose another "
            "--output or add --overwrite."
        )
    replace = overwrite or different == []
    with atomic_dir(output, replace, "summary.json", inputs=evaluation.paths) as folder:
        table, summary = evaluation.run()
        baseline = pd.DataFrame([{name: summary["scores"][name] for name in ("loss", "dice_coef")}])
        if summary["leakage"]:
            baseline["leakage"] = True
        write_table(folder / "evaluation.csv", baseline)
        write_table(folder / "per_image.csv", table)
        write_image(folder / "cases.png", _draw_cases(evaluation, table))
        if "category" in table:
            _draw_categories(table, summary, folder)
        write_json(folder / "summary.json", summary)
        figures = _draw_figures(table, summary)
        for name, figure in figures.items():
            save_figure(figure, folder / f"{name}.png")
        disturbed = None
        if robustness:
            disturbed = measure_robustness(evaluation, robustness)
            write_table(folder / "robustness.csv", disturbed)
            save_figure(draw_robustness(disturbed, columns=4), folder / "robustness.png")
        if report == "full":
            write_report(evaluation, table, summary, figures, folder, disturbed)
    return summary


# What must be the same for an evaluation to replace another: keys of the summary, and their names.
SAME = {
    "checkpoint_sha256": "checkpoint",
    "data": "dataset",
    "split": "split",
    "leakage": "leakage",
    "batch_size": "batch size",
    "postprocessing": "post-processing",
    "mask_threshold": "mask threshold",
    "spacing": "spacing",
}


def _compare_descriptions(output: Path, description: dict[str, Any]) -> list[str] | None:
    """What differs between the evaluation in a folder and one with this description.

    Args:
        output: a folder, which need not exist.
        description: see `Evaluation.describe`.

    Returns:
        Names of `SAME`; None where the folder holds no evaluation.
    """
    try:
        earlier = json.loads((output / "summary.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(earlier, dict):
        return None
    # Earlier summaries do not tell what they had no choice of.
    chosen = earlier.get("postprocessing", {})
    if isinstance(chosen, dict):
        earlier["postprocessing"] = {**to_dict(Postprocessing()), **chosen}
    earlier.setdefault("mask_threshold", description["mask_threshold"])
    return [name for key, name in SAME.items() if earlier.get(key) != description[key]]


def _draw_figures(table: pd.DataFrame, summary: dict[str, Any]) -> dict[str, Figure]:
    """The figures of an evaluation, by the names of their files."""
    overall = summary["scores"]["dice_original"]
    temperature = summary["postprocessing"]["temperature"]
    title = "Dice, original size,"
    if summary["leakage"]:
        title = "Dice (leakage), original size,"
    return {
        "dice": draw_histogram(table["dice_original"].to_numpy(), title),
        "failures": draw_failures(summary["failures"]),
        "subgroups": draw_subgroups(summary["subgroups"], overall),
        "reliability": draw_reliability(summary["calibration"], temperature),
        "risk_coverage": draw_risk_coverage(summary["confidence"], summary["flags"]),
    }


def _draw_categories(table: pd.DataFrame, summary: dict[str, Any], folder: Path) -> None:
    groups = {}
    for row in summary["per_category"]:
        dice = table.loc[table["category"] == row["name"], "dice_original"]
        groups[row["name"]] = dice.dropna().to_numpy()
    title = "Dice of the lesion per image, original size, by the image's category"
    draw_boxes(groups, title, folder / "dice_categories.png")
    counts = count_confusion(table, summary)
    if counts is not None:
        draw_confusion(counts, folder / "confusion.png")


def _draw_cases(evaluation: Evaluation, table: pd.DataFrame, count: int = 4) -> np.ndarray:
    """The worst, the middle and the best cases by Dice, a column each."""
    # Images where both maps are empty have no Dice and count as perfect.
    order = table["dice_original"].fillna(1).sort_values(kind="stable").index.to_list()
    count = min(count, len(order))
    middle = max(0, (len(order) - count) // 2)
    worst_cases = order[:count]
    middle_cases = order[middle : middle + count]
    best_cases = order[-count:]
    pictures = []
    for row in zip(worst_cases, middle_cases, best_cases, strict=True):
        for index in row:
            pictures.append(_draw_case(evaluation, table, index))
    return contact_sheet(pictures, 3, evaluation.datamodule.categories)


def _draw_case(evaluation: Evaluation, table: pd.DataFrame, index: int) -> np.ndarray:
    """Image, reference and prediction of one image of the split."""
    item = evaluation.dataset[index]
    batch = item["image"][None].to(evaluation.device)
    logits = evaluation.logits([item["stem"]], batch, evaluation.postprocessing.flips)
    labels, _ = evaluation.postprocess([item["stem"]], logits)
    return case_row(
        image=item["image"].permute(1, 2, 0).numpy(),
        mask=item["mask"][0].numpy(),
        pred=labels[0, 0].cpu().numpy(),
        title=f"{item['stem']}  Dice {table['dice_original'][index]:.3f}",
        side=200,
        classes=evaluation.task.classes,
    )


def print_summary(summary: dict[str, Any]) -> None:
    """The summary as tables on the terminal."""
    title = (
        f"{summary['split']}: {summary['images']} images of {summary['data']}, "
        f"{summary['checkpoint']}, epoch {summary['epoch']}"
    )
    if summary["leakage"]:
        title = f"LEAKAGE, near-duplicates in two splits: {title}"
    if summary["trained_on"]:
        title = f"TRAINED ON these images: {title}"
    if summary["dataset_changed"]:
        title = f"DATASET CHANGED since training, may have been trained on these images: {title}"
    postprocessing = Postprocessing(**summary["postprocessing"])
    if postprocessing.changes:
        title = f"{title}, {postprocessing}"

    rows = []
    for name, value in summary["scores"].items():
        if isinstance(value, dict):
            rows.append(
                (
                    _label(name, "per image"),
                    format_score(value["mean"]),
                    format_interval(value["ci95"]),
                    format_score(value["median"]),
                    str(value["images"]),
                )
            )
        else:
            rows.append((_label(name), format_score(value), "", "", ""))
    print_table(("score", "value", "95 % interval", "median", "images"), rows, title)
    if "per_category" in summary:
        _print_categories(summary["per_category"])
    print(describe_calibration(summary))
    if summary["flags"] is not None:
        print(f"Flags: {describe_flags(summary['flags'])}")


def _print_categories(rows: list[dict[str, Any]]) -> None:
    """A table of the categories; a run for categories has more columns than one for one class."""
    lines: list[tuple[str, ...]] = []
    if "recognised" not in rows[0]:
        for row in rows:
            dice = row["dice"]
            lines.append(
                (
                    row["name"],
                    str(row["images"]),
                    format_score(dice["mean"]),
                    format_interval(dice["ci95"]),
                    format_score(row["iou_pooled"]),
                )
            )
        head = ("category", "images", "Dice", "95 % interval", "IoU pooled")
        print_table(head, lines, "by category of the image, original size")
        return
    for row in rows:
        of_category = row.get("category_dice", {"mean": None, "images": ""})
        lines.append(
            (
                row["name"],
                str(row["images"]),
                format_score(row["dice"]["mean"]),
                str(row["recognised"]),
                format_score(of_category["mean"]),
                str(of_category["images"]),
                format_score(row.get("category_iou_pooled")),
            )
        )
    print_table(
        ("category", "images", "lesion Dice", "recognised", "category Dice", "over", "IoU pooled"),
        lines,
        "by category",
    )


def _label(name: str, kind: str = "") -> str:
    """The label of a score, or of a score at the original size, and what kind of number it is."""
    surface = {**SURFACE_SCORES, **SURFACE_SCORES_MM}
    if name in surface:
        return f"{surface[name].label}, original size, {kind}"
    plain = name.removesuffix("_original")
    label = "mIoU pooled" if plain == "miou_pooled" else SCORES[plain].label
    if plain == name:
        return f"{label} {kind}".rstrip()
    parts = [label, "original size", kind]
    return ", ".join(part for part in parts if part)
