"""The page of an evaluation, `report.html`: scores, failures, cases, and what was run."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import matplotlib
import numpy as np
import pandas as pd
import torch

from ovseg.core.pages import embed_file, embed_image, svg_path, write_page
from ovseg.core.processes import processor_name
from ovseg.core.runs import RunFolder
from ovseg.evaluation.calibration import describe_calibration, describe_flags
from ovseg.evaluation.evaluate import Evaluation
from ovseg.inference.labels import Postprocessing, lesion_of_classes
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
    figures: dict[str, str],
    folder: Path,
) -> None:
    """Write `report.html`.

    Args:
        evaluation: what was run.
        table: see `Evaluation.run`.
        summary: see `Evaluation.run`.
        figures: title -> file in the folder.
        folder: of the report.
    """
    galleries = {}
    for title, rows in choose_cases(table).items():
        galleries[title] = [draw_case(evaluation, row) for row in rows]
    columns = {name: label for name, label in COLUMNS.items() if name in table}
    write_page(
        folder / "report.html",
        PAGE,
        summary=summary,
        figures={title: embed_file(folder / name) for title, name in figures.items()},
        galleries=galleries,
        columns=columns,
        rows=table[list(columns)].to_dict("records"),
        facts=list_facts(evaluation, summary),
        configuration=read_configuration(evaluation.paths),
        calibration=describe_calibration(summary),
        flags=describe_flags(summary["flags"]) if summary["flags"] else None,
    )


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


def list_facts(evaluation: Evaluation, summary: dict[str, Any]) -> dict[str, str]:
    """What was run and on what, name -> text."""
    versions = [f"{name} {version}" for name, version in summary["versions"].items()]
    postprocessing = Postprocessing(**summary["postprocessing"])
    intervals = "images, taken as independent"
    if summary["intervals"] == "groups":
        intervals = "groups of near-duplicates"
    tolerance = f"{summary['nsd_tolerance']:g} pixels of the original picture"
    spacing = "unknown, so distances are in pixels"
    if summary["spacing"] is not None:
        known = summary["scores"]["hd95_mm"]["images"]
        tolerance = f"{tolerance}; {summary['nsd_tolerance_mm']:g} mm"
        spacing = f"{summary['spacing']}, known of {known} of {summary['images']} images"
    return {
        "checkpoint": f"{summary['checkpoint']}, epoch {summary['epoch']}",
        "SHA-256 of the checkpoint": summary["checkpoint_sha256"],
        "files": "; ".join(summary["members"]),
        "dataset": f"{summary['data']}, {summary['split']}, {summary['images']} images",
        "leakage": "near-duplicates are in two splits" if summary["leakage"] else "none known",
        "image size": f"{summary['image_size']} x {summary['image_size']} pixels",
        "post-processing": str(postprocessing),
        "tolerance of NSD": tolerance,
        "millimetres per pixel": spacing,
        "intervals resample": intervals,
        "device": f"{evaluation.device}, {processor_name()}, {torch.get_num_threads()} threads",
        "versions": ", ".join(versions),
    }


def read_configuration(checkpoints: Sequence[Path]) -> list[str]:
    """Lines of the first run's configuration; empty where there is none, as for a lone file."""
    path = RunFolder.of_checkpoint(checkpoints[0]).config
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return []
