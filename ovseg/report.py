"""An evaluation as files: tables for machines, pictures and a terminal table for people."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from rich.console import Console
from rich.table import Table

from ovseg.data.datamodule import PairDataset
from ovseg.drawing import case_row, contact_sheet
from ovseg.errors import InputError
from ovseg.evaluation import Evaluation
from ovseg.files import atomic_dir, write_image, write_json
from ovseg.metrics import HARD_SCORES, lesion
from ovseg.plots import draw_histogram


def report_evaluation(evaluation: Evaluation, output: Path, overwrite: bool = False) -> dict[str, Any]:
    """Evaluate and write `evaluation.csv`, `per_image.csv`, `summary.json`, `dice.png` and `cases.png`.

    A result of the same checkpoint on the same data is replaced; another one only with `overwrite`.

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
    with atomic_dir(output, overwrite or same, "summary.json", inputs=[evaluation.checkpoint_path]) as folder:
        table, summary = evaluation.run()
        baseline = pd.DataFrame([{name: summary["scores"][name] for name in ("loss", "dice_coef")}])
        if summary["leakage"]:
            baseline["leakage"] = True
        baseline.to_csv(folder / "evaluation.csv", index=False)
        table.to_csv(folder / "per_image.csv", index=False)
        draw_histogram(
            table["dice"].to_numpy(), "Dice (leakage)" if summary["leakage"] else "Dice", folder / "dice.png"
        )
        write_image(folder / "cases.png", _draw_cases(evaluation, table))
        write_json(folder / "summary.json", summary)
    return summary


def _is_same(output: Path, description: dict[str, Any]) -> bool:
    try:
        earlier = json.loads((output / "summary.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    names = ("checkpoint_sha256", "data", "split", "leakage", "batch_size")
    return isinstance(earlier, dict) and all(earlier.get(name) == description[name] for name in names)


def _draw_cases(evaluation: Evaluation, table: pd.DataFrame, count: int = 4) -> np.ndarray:
    """Image, reference and prediction of the worst, the middle and the best cases by Dice, a column each."""
    order = table["dice"].fillna(1).sort_values(kind="stable").index.to_list()
    count = min(count, len(order))
    middle = max(0, (len(order) - count) // 2)
    dataset = evaluation.datamodule.dataset(evaluation.split)
    columns = [order[:count], order[middle : middle + count], order[-count:]]
    return contact_sheet([_case(evaluation, dataset, table, i) for row in zip(*columns, strict=True) for i in row], 3)


@torch.inference_mode()
def _case(evaluation: Evaluation, dataset: PairDataset, table: pd.DataFrame, index: int) -> np.ndarray:
    item = dataset[index]
    pred = lesion(evaluation.task(item["image"][None].to(evaluation.device)))[0, 0].cpu().numpy()
    title = f"{item['stem']}  Dice {table['dice'][index]:.3f}"
    return case_row(item["image"].permute(1, 2, 0).numpy(), item["mask"][0].numpy(), pred, title, side=200)


def print_rows(head: Sequence[str], rows: Iterable[Sequence[str]], title: str) -> None:
    """A table of texts on the terminal."""
    table = Table(*head, title=title)
    for row in rows:
        table.add_row(*row)
    Console(width=110).print(table)


def print_summary(summary: dict[str, Any]) -> None:
    """The summary as a table on the terminal."""
    title = f"{summary['split']}: {summary['images']} images of {summary['data']}, {summary['checkpoint']}, epoch "
    if summary["leakage"]:
        title = f"LEAKAGE, near-duplicates in two splits: {title}"
    rows = []
    for name, value in summary["scores"].items():
        if name not in HARD_SCORES:
            rows.append((_FULL_NAMES[name], f"{value:.4f}", "", "", ""))
        elif value["mean"] is None:
            rows.append((f"{name} per image", "none", "", "", "0"))
        else:
            interval = "" if value["ci95"] is None else "{:.4f} .. {:.4f}".format(*value["ci95"])
            rows.append(
                (f"{name} per image", f"{value['mean']:.4f}", interval, f"{value['median']:.4f}", str(value["images"]))
            )
    print_rows(("score", "value", "95 % interval", "median", "images"), rows, f"{title}{summary['epoch']}")


_FULL_NAMES = {"loss": "loss", "dice_coef": "dice_coef (soft, per batch)", "iou_pooled": "IoU pooled"}


def evaluation_dir(run: Path, split: str) -> Path:
    """Where the evaluation of a run folder stands: `evaluation` for the test split, `evaluation_<split>` else.

    Raises:
        InputError: `run` is a file, so the folder must be named.
    """
    if not Path(run).is_dir():
        raise InputError(f"{run} is no run folder, so it has no place for the result. Add --output FOLDER.")
    return Path(run) / ("evaluation" if split == "test" else f"evaluation_{split}")
