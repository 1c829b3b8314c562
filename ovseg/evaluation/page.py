"""The page of an evaluation, `report.html`: scores, failures, cases, and what was run."""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from ovseg.core.errors import InputError
from ovseg.core.limits import MAX_TEXT_BYTES
from ovseg.core.pages import embed_figures, embed_image, svg_path, write_page
from ovseg.core.runs import RunFolder
from ovseg.core.schema import read_text
from ovseg.evaluation.calibration import describe_calibration, describe_flags
from ovseg.evaluation.evaluate import Evaluation
from ovseg.evaluation.figures import draw_training
from ovseg.evaluation.model_card import (
    describe_data,
    describe_evaluation,
    describe_training,
    read_configuration,
)
from ovseg.evaluation.robustness import draw_robustness
from ovseg.evaluation.summary import FEW_UNITS
from ovseg.inference.labels import lesion_of_classes
from ovseg.inference.uncertainty import LAST_COLOR

PAGE = Path(__file__).parent / "page.html.j2"
SIDE = 480  # longest side of a case, pixels
CASES_OF_A_KIND = 6
# Columns of the table of images, and their headings.
COLUMNS = {
    "stem": "image",
    "category": "category",
    "dice_original": "Dice",
    "iou_original": "IoU",
    "sensitivity_original": "sensitivity",
    "precision_original": "precision",
    "hd95": "HD95, pixels",
    "nsd": "NSD, pixels",
    "hd95_mm": "HD95, mm",
    "nsd_mm": "NSD, mm",
    "confidence": "confidence",
    "failure": "kind",
}


@dataclass(frozen=True)
class Outlines:
    """A picture with the outlines of a reference and a prediction.

    Attributes:
        width: of the picture, pixels.
        height: of the picture, pixels.
        picture: data URL.
        reference: outline of the mask, see `svg_path`.
        prediction: outline of the prediction.
    """

    width: int
    height: int
    picture: str
    reference: str
    prediction: str


@dataclass(frozen=True)
class Case:
    """One image of the gallery.

    Attributes:
        row: its row of the table.
        outlines: what is shown.
        probabilities: data URL of the probabilities as a transparent picture.
        uncertainty: the same of where flips and members disagree, see
            `ovseg.inference.uncertainty`.
    """

    row: dict[str, Any]
    outlines: Outlines
    probabilities: str
    uncertainty: str


def write_report(
    evaluation: Evaluation,
    table: pd.DataFrame,
    summary: dict[str, Any],
    figures: dict[str, Figure],
    folder: Path,
    disturbed: pd.DataFrame | None = None,
) -> None:
    """Write `report.html`.

    Args:
        evaluation: what was run.
        table: see `Evaluation.run`.
        summary: see `Evaluation.run`.
        figures: of the summary, by name.
        folder: of the report.
        disturbed: see `measure_robustness`; None leaves robustness out.
    """
    galleries = {}
    for title, rows in choose_cases(table).items():
        galleries[title] = [draw_case(evaluation, row) for row in rows]
    columns = {name: label for name, label in COLUMNS.items() if name in table}
    run = RunFolder.of(evaluation.paths[0])
    config = read_configuration(run)
    training = {}
    if len(evaluation.paths) == 1:
        for kind, curves in read_curves(run).items():
            training[kind] = draw_training(curves, summary["epoch"], kind)
    robustness = {}
    if disturbed is not None:
        robustness["wide"] = draw_robustness(disturbed, columns=4)
        robustness["narrow"] = draw_robustness(disturbed, columns=2)
    write_page(
        folder / "report.html",
        PAGE,
        summary=summary,
        worst=find_worst(summary),
        figures=embed_figures(figures),
        training_figures=embed_figures(training),
        robustness_figures=embed_figures(robustness),
        disturbances=[] if disturbed is None else disturbed.to_dict("records"),
        confusion=count_confusion(table, summary),
        galleries=galleries,
        columns=columns,
        rows=table[list(columns)].to_dict("records"),
        facts={
            "Evaluation": describe_evaluation(evaluation, summary),
            "Data": describe_data(evaluation.datamodule.root, summary),
            "Training": describe_training(run, config),
        },
        members=len(evaluation.paths),
        configuration=config.splitlines(),
        calibration=describe_calibration(summary),
        flags=describe_flags(summary["flags"]) if summary["flags"] else None,
    )


def find_worst(summary: dict[str, Any]) -> dict[str, dict[str, Any] | None]:
    """What fails most: the `kind` of most failures, and the `size` of lesion that fails most often.

    Sizes of fewer than `FEW_UNITS` images are left out.

    Returns:
        A row of `failures` and a row of `subgroups` of the summary; None where nothing fails.
    """
    kinds = [row for row in summary["failures"] if row["kind"] != "good" and row["images"]]
    # Pictures without a lesion are counted in `failures`: those that are right have no Dice.
    sizes = []
    for row in summary["subgroups"]:
        is_size = row["by"] == "lesion" and row["name"] != "none"
        if is_size and row["failed"] and row["images"] >= FEW_UNITS:
            sizes.append(row)
    return {
        "kind": max(kinds, key=lambda row: row["images"], default=None),
        "size": max(sizes, key=lambda row: row["failed"] / row["images"], default=None),
    }


def read_curves(run: RunFolder) -> dict[str, pd.DataFrame]:
    """The curves of a training, by what they show: `losses` and `metrics`.

    Args:
        run: its folder.

    Returns:
        `epoch`, counted from 1, and a column for each curve. A table that is missing, as for a lone
        checkpoint, or is damaged is left out.
    """
    found = {}
    for kind in ("losses", "metrics"):
        try:
            text = read_text(run.curves(kind, ".csv"), MAX_TEXT_BYTES)
            table = pd.read_csv(io.StringIO(text)).select_dtypes("number")
        except (InputError, ValueError):
            continue
        if "epoch" in table and len(table.columns) > 1 and len(table):
            found[kind] = table.rename(columns=_label_curve)
    return found


def _label_curve(name: str) -> str:
    if name == "epoch":
        return name
    if name.startswith("val_"):
        return f"{name.removeprefix('val_')}, validation"
    return f"{name}, training"


def count_confusion(table: pd.DataFrame, summary: dict[str, Any]) -> pd.DataFrame | None:
    """Numbers of images, a row a category of the reference, a column a predicted one.

    Returns:
        None for a run of one class.
    """
    if "pred_category" not in table:
        return None
    names = [row["name"] for row in summary["per_category"]]
    names += sorted(set(table["pred_category"]) - set(names))
    counts = pd.crosstab(table["category"], table["pred_category"])
    return counts.reindex(index=names, columns=names).fillna(0).astype(int)


def choose_cases(table: pd.DataFrame) -> dict[str, list[dict[str, Any]]]:
    """Title -> rows of the table: the failures of each kind, worst first, then middle and best."""
    # Images in which both maps are empty have no Dice and count as exact.
    order = table.assign(rank=table["dice_original"].fillna(1.0)).sort_values("rank", kind="stable")
    chosen = {}
    for kind in table["failure"].value_counts().index:
        if kind != "good":
            part = order[order["failure"] == kind]
            title = f"{kind}: {len(part)} of {len(table)} images"
            chosen[title] = part.head(CASES_OF_A_KIND).to_dict("records")
    middle = max(0, (len(order) - CASES_OF_A_KIND) // 2)
    chosen["median cases"] = order.iloc[middle : middle + CASES_OF_A_KIND].to_dict("records")
    chosen["best cases"] = order.tail(CASES_OF_A_KIND).iloc[::-1].to_dict("records")
    return chosen


def draw_case(evaluation: Evaluation, row: dict[str, Any]) -> Case:
    """A case of the gallery, in the shape of its original picture."""
    stem = row["stem"]
    mask = evaluation.originals.mask(stem)
    probs = evaluation.predict_again(stem)
    labels = evaluation.postprocessing.labels(probs)
    outlines = draw_outlines(evaluation.originals.picture(stem), mask > 0, labels > 0)
    size = (outlines.width, outlines.height)
    reported = lesion_of_classes(evaluation.postprocessing.calibrate(probs))
    probabilities = _tint(cv2.resize(reported, size))
    uncertainty = _tint(cv2.resize(evaluation.uncertainty(stem), size) / LAST_COLOR)
    return Case(row, outlines, embed_image(probabilities, ".png"), embed_image(uncertainty, ".png"))


def draw_outlines(picture: np.ndarray, mask: np.ndarray, pred: np.ndarray) -> Outlines:
    """A picture of at most `SIDE` pixels with two outlines.

    Args:
        picture: RGB, uint8 (h, w, 3), of the shape of the masks or resized from it.
        mask: reference lesion, bool (height, width).
        pred: predicted lesion, bool (height, width).
    """
    scale = min(1.0, SIDE / max(mask.shape))
    width = max(1, round(mask.shape[1] * scale))
    height = max(1, round(mask.shape[0] * scale))
    shown = cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)
    return Outlines(
        width=width,
        height=height,
        picture=embed_image(shown),
        reference=svg_path(_shrink(mask, (width, height))),
        prediction=svg_path(_shrink(pred, (width, height))),
    )


def _shrink(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    shrunk = cv2.resize(mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST)
    return shrunk > 0


def _tint(values: np.ndarray) -> np.ndarray:
    """Values in 0..1, float (H, W), as colours, RGBA uint8: low ones are transparent."""
    # Coarse steps make a small file.
    steps = np.round(np.clip(values, 0, 1) * 15) / 15
    colors = matplotlib.colormaps["viridis"](steps)
    colors[..., 3] = 0.65 * (steps > 0)
    return (colors * 255).astype(np.uint8)
