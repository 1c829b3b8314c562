"""An evaluation as files: tables for machines, pictures and a terminal table for people."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ovseg.core.console import print_table
from ovseg.core.drawing import case_row, contact_sheet
from ovseg.core.files import atomic_dir, write_image, write_json
from ovseg.core.plots import draw_boxes, draw_confusion, draw_histogram
from ovseg.core.runs import RunFolder
from ovseg.data.datamodule import PairDataset
from ovseg.evaluation.evaluate import Evaluation
from ovseg.inference.postprocessing import Postprocessing, to_dict
from ovseg.metrics import HARD_SCORES, ORIGINAL_SCORES, SCORES


def evaluate(
    run: str | Path,
    split: str = "test",
    data: str | Path | None = None,
    output: str | Path | None = None,
    batch_size: int = 4,
    device: str = "auto",
    postprocessing: bool = True,
    overwrite: bool = False,
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

    Returns:
        The summary, which is also written to `summary.json`.

    Raises:
        InputError: run, dataset, device or output can't be used.
    """
    run = Path(run)
    folder = Path(output) if output else RunFolder(run).evaluation(split)
    root = Path(data) if data else None
    evaluation = Evaluation(run, split, root, batch_size, device, postprocessing)
    return report_evaluation(evaluation, folder, overwrite)


def report_evaluation(
    evaluation: Evaluation, output: Path, overwrite: bool = False
) -> dict[str, Any]:
    """Evaluate and write `evaluation.csv`, `per_image.csv`, `summary.json`, `dice.png` and `cases.png`.

    Where the categories of the images are known, also `dice_categories.png`; and of a run for categories
    `confusion.png`, the category of each image against the predicted one. A result of the same checkpoint on the same
    data with the same post-processing is replaced; another one only with `overwrite`.

    Args:
        evaluation: what to run.
        output: folder to make; it appears when it is whole.
        overwrite: replace any earlier evaluation.

    Returns:
        The summary.

    Raises:
        InputError: `output` holds something else.
    """
    same = _is_same(output, evaluation.describe())
    with atomic_dir(output, overwrite or same, "summary.json", inputs=evaluation.paths) as folder:
        table, summary = evaluation.run()
        baseline = pd.DataFrame([{name: summary["scores"][name] for name in ("loss", "dice_coef")}])
        if summary["leakage"]:
            baseline["leakage"] = True
        baseline.to_csv(folder / "evaluation.csv", index=False)
        table.to_csv(folder / "per_image.csv", index=False)
        draw_histogram(
            table["dice"].to_numpy(),
            "Dice (leakage)" if summary["leakage"] else "Dice",
            folder / "dice.png",
        )
        write_image(folder / "cases.png", _draw_cases(evaluation, table))
        if "category" in table:
            _draw_categories(table, summary["per_category"], folder)
        write_json(folder / "summary.json", summary)
    return summary


def _is_same(output: Path, description: dict[str, Any]) -> bool:
    try:
        earlier = json.loads((output / "summary.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    names = ("checkpoint_sha256", "data", "split", "leakage", "batch_size", "postprocessing")
    if not isinstance(earlier, dict):
        return False
    earlier = {
        "postprocessing": to_dict(Postprocessing()),
        **earlier,
    }  # what was the only one before there were post-processing settings
    return all(earlier.get(name) == description[name] for name in names)


def _draw_categories(table: pd.DataFrame, rows: list[dict[str, Any]], folder: Path) -> None:
    names = [row["name"] for row in rows]
    groups = {
        name: table.loc[table["category"] == name, "dice"].dropna().to_numpy() for name in names
    }
    draw_boxes(
        groups,
        "Dice of the lesion per image, by the image's category",
        folder / "dice_categories.png",
    )
    if "pred_category" in table:
        names += sorted(set(table["pred_category"]) - set(names))
        counts = pd.crosstab(table["category"], table["pred_category"]).reindex(
            index=names, columns=names
        )
        draw_confusion(counts.fillna(0).astype(int), folder / "confusion.png")


def _draw_cases(evaluation: Evaluation, table: pd.DataFrame, count: int = 4) -> np.ndarray:
    """Image, reference and prediction of the worst, the middle and the best cases by Dice, a column each."""
    order = table["dice"].fillna(1).sort_values(kind="stable").index.to_list()
    count = min(count, len(order))
    middle = max(0, (len(order) - count) // 2)
    dataset = evaluation.datamodule.dataset(evaluation.split)
    columns = [order[:count], order[middle : middle + count], order[-count:]]
    cases = [
        _case(evaluation, dataset, table, i) for row in zip(*columns, strict=True) for i in row
    ]
    return contact_sheet(cases, 3, evaluation.datamodule.categories)


def _case(
    evaluation: Evaluation, dataset: PairDataset, table: pd.DataFrame, index: int
) -> np.ndarray:
    item = dataset[index]
    logits = evaluation.logits(
        item["image"][None].to(evaluation.device), evaluation.postprocessing.flips
    )
    pred = evaluation.postprocess([item["stem"]], logits)[0][0, 0].cpu().numpy()
    title = f"{item['stem']}  Dice {table['dice'][index]:.3f}"
    image, mask = item["image"].permute(1, 2, 0).numpy(), item["mask"][0].numpy()
    return case_row(image, mask, pred, title, side=200, classes=evaluation.task.classes)


def print_leakage(summary: dict[str, Any]) -> None:
    """What `ovseg.experiments.leakage.measure_leakage` found, as a table on the terminal."""
    dice = ", ".join(f"{name} {value:.4f}" for name, value in summary["dice"].items())
    share = (
        f"{100 * summary['related_share']:.0f} % of random test images have a relative in training"
    )
    rows = []
    for name, found in summary["differences"].items():
        interval = "" if found["ci95"] is None else "{:+.4f} .. {:+.4f}".format(*found["ci95"])
        mean = "none" if found["mean"] is None else f"{found['mean']:+.4f}"
        rows.append((name, mean, interval, str(found["count"])))
    print_table(
        ("difference of Dice", "mean", "95 % interval", "of"),
        rows,
        f"mean test Dice: {dice}. {share}.",
    )


def print_summary(summary: dict[str, Any]) -> None:
    """The summary as tables on the terminal."""
    title = f"{summary['split']}: {summary['images']} images of {summary['data']}, {summary['checkpoint']}, epoch "
    if summary["leakage"]:
        title = f"LEAKAGE, near-duplicates in two splits: {title}"
    rows = []
    for name, value in summary["scores"].items():
        if name in (*HARD_SCORES, *ORIGINAL_SCORES):
            rows.append(
                (
                    f"{_label(name)} per image",
                    *_mean_and_interval(value),
                    _text(value["median"]),
                    str(value["images"]),
                )
            )
        else:
            rows.append((_label(name), _text(value), "", "", ""))
    postprocessing = Postprocessing(**summary["postprocessing"])
    title = f"{title}{summary['epoch']}" + (f", {postprocessing}" if postprocessing.changes else "")
    print_table(("score", "value", "95 % interval", "median", "images"), rows, title)
    if "per_category" in summary:
        _print_categories(summary["per_category"])


def _print_categories(rows: list[dict[str, Any]]) -> None:
    """The lesion in the images of each category; for a run for categories also how well the category itself is met."""
    if "recognised" not in rows[0]:
        head = ("category", "images", "Dice", "95 % interval", "IoU pooled")
        lines = [
            (r["name"], str(r["images"]), *_mean_and_interval(r["dice"]), _text(r["iou_pooled"]))
            for r in rows
        ]
        print_table(head, lines, "by category of the image")
        return
    head, lines = (
        ("category", "images", "lesion Dice", "recognised", "category Dice", "over", "IoU pooled"),
        [],
    )
    for row in rows:
        dice = row.get("category_dice", {"mean": None, "images": ""})
        own = (_text(dice["mean"]), str(dice["images"]), _text(row.get("category_iou_pooled")))
        lines.append(
            (
                row["name"],
                str(row["images"]),
                _text(row["dice"]["mean"]),
                str(row["recognised"]),
                *own,
            )
        )
    print_table(head, lines, "by category")


def _mean_and_interval(value: dict[str, Any]) -> tuple[str, str]:
    return _text(value["mean"]), "" if value["ci95"] is None else "{:.4f} .. {:.4f}".format(
        *value["ci95"]
    )


def _text(value: float | None) -> str:
    return "none" if value is None else f"{value:.4f}"


def _label(name: str) -> str:
    """A score's label, of a score at the original size too."""
    label = SCORES[name.removesuffix("_original")].label
    return f"{label}, original size," if name.endswith("_original") else label
