"""The row of an evaluation's table for one image at its original size."""

from dataclasses import asdict
from typing import Any

import cv2
import numpy as np
import torch

from ovseg.data.augment.calipers import find_calipers
from ovseg.data.colours import is_doppler, measure_colours
from ovseg.evaluation.distances import surface_distances
from ovseg.evaluation.failures import count_components, failure_kind
from ovseg.inference.labels import expected_dice
from ovseg.metrics import hard_scores

TOLERANCE = 5.0  # pixels of the original image within which outlines count as equal, for NSD
# The same in millimetres: 5 pixels of 0.2 mm, as in a picture of 500 rows and a depth of 10 cm.
TOLERANCE_MM = 1.0
MARK_REACH = 0.02  # of the picture's longer side


def score_case(
    probs: np.ndarray,
    labels: np.ndarray,
    mask: np.ndarray,
    tolerance: float = TOLERANCE,
    spacing: tuple[float, float] | None = None,
) -> dict[str, Any]:
    """Scores of the lesion of one picture, whatever its category.

    Args:
        probs: probability of lesion that is reported, float32 (height, width) in 0..1.
        labels: predicted ids, uint8 (height, width).
        mask: reference ids, uint8 (height, width).
        tolerance: of NSD, pixels.
        spacing: millimetres from row to row, and from column to column; None where unknown.

    Returns:
        `ORIGINAL_SCORES` and `SURFACE_SCORES`; `centroid_distance` in pixels (NaN where a map is
        empty); `components` and `pred_components`; `confidence` (see `expected_dice`); `failure`, a
        key of `failures.KINDS`; `height`, `width`, and the areas of `area_counts`. With a spacing
        also those of `measure_millimetres`.
    """
    pred = labels > 0
    lesion = mask > 0
    distances = surface_distances(pred, lesion, tolerance)
    pred_map = torch.from_numpy(pred)[None, None]
    lesion_map = torch.from_numpy(lesion)[None, None]

    row: dict[str, Any] = {}
    for name, score in hard_scores(pred_map, lesion_map).items():
        row[f"{name}_original"] = score.item()
    row.update(asdict(distances))
    row["centroid_distance"] = centroid_distance(pred, lesion)
    row["components"] = count_components(lesion)
    row["pred_components"] = count_components(pred)
    row["confidence"] = expected_dice(probs, pred)
    row["failure"] = failure_kind(pred, lesion, distances)
    row["height"], row["width"] = mask.shape
    for name, count in area_counts(pred_map, lesion_map).items():
        row[f"{name}_original"] = int(count)
    if spacing is not None:
        row.update(measure_millimetres(pred, lesion, spacing))
    return row


def measure_millimetres(
    pred: np.ndarray, mask: np.ndarray, spacing: tuple[float, float]
) -> dict[str, float]:
    """Distances and areas of one picture in millimetres.

    Args:
        pred: predicted lesion, bool (height, width).
        mask: reference lesion, bool (height, width).
        spacing: millimetres from row to row, and from column to column.

    Returns:
        `SURFACE_SCORES_MM`, NSD within `TOLERANCE_MM`; `centroid_distance_mm`, NaN where a map is
        empty; `lesion_area_mm2` and `pred_area_mm2`.
    """
    pixel_area = spacing[0] * spacing[1]
    row = {}
    for name, value in asdict(surface_distances(pred, mask, TOLERANCE_MM, spacing)).items():
        row[f"{name}_mm"] = value
    row["centroid_distance_mm"] = centroid_distance(pred, mask, spacing)
    row["lesion_area_mm2"] = float(mask.sum() * pixel_area)
    row["pred_area_mm2"] = float(pred.sum() * pixel_area)
    return row


def describe_picture(picture: np.ndarray, mask: np.ndarray) -> dict[str, bool]:
    """What a picture shows beside tissue.

    Args:
        picture: RGB, uint8 (h, w, 3), of the shape of `mask` or resized from it.
        mask: reference lesion, bool (height, width).

    Returns:
        `doppler`: colour Doppler, see `ovseg.data.colours`. `marked`: a yellow caliper or label is
        on the lesion or within `MARK_REACH` of it. Nearly all pictures of OTU_2d have yellow texts;
        in 24 that were looked at the rule told those with marks on the lesion.
    """
    marks = cv2.resize(find_calipers(picture), mask.shape[::-1], interpolation=cv2.INTER_NEAREST)
    reach = max(1, round(MARK_REACH * max(mask.shape)))
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach + 1, 2 * reach + 1))
    near = cv2.dilate(mask.astype(np.uint8), disc)
    return {
        "doppler": is_doppler(*measure_colours(picture)),
        "marked": bool(marks[near > 0].any()),
    }


def centroid_distance(
    pred: np.ndarray, mask: np.ndarray, spacing: tuple[float, float] = (1.0, 1.0)
) -> float:
    """Distance of the centres of gravity of two masks, bool (H, W); NaN if one is empty.

    Args:
        pred: predicted lesion.
        mask: reference lesion.
        spacing: see `surface_distances`, whose unit the distance has.
    """
    if not pred.any() or not mask.any():
        return float("nan")
    columns, rows = _centroid(pred) - _centroid(mask)
    return float(np.hypot(rows * spacing[0], columns * spacing[1]))


def _centroid(mask: np.ndarray) -> np.ndarray:
    """Column and row of the centre of gravity of a mask that is not empty."""
    moments = cv2.moments(mask.astype(np.uint8), binaryImage=True)
    return np.array([moments["m10"], moments["m01"]]) / moments["m00"]


def area_counts(pred: torch.Tensor, mask: torch.Tensor) -> dict[str, torch.Tensor]:
    """Lesion pixels of each image in its mask, its prediction and both.

    Args:
        pred: predicted ids, (N, 1, H, W).
        mask: reference ids, (N, 1, H, W).

    Returns:
        `lesion_pixels`, `pred_pixels`, `hit_pixels`, each int64 (N,).
    """
    lesion = mask.flatten(1) > 0
    found = pred.flatten(1) > 0
    return {
        "lesion_pixels": lesion.sum(1),
        "pred_pixels": found.sum(1),
        "hit_pixels": (found & lesion).sum(1),
    }
