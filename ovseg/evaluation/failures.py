"""What kind of failure a prediction is."""

from dataclasses import dataclass

import cv2
import numpy as np

from ovseg.evaluation.distances import SurfaceDistances

# Kinds in the order in which they are asked for, and what they mean.
KINDS = {
    "good": "Dice of {good} or more, or no lesion in both masks",
    "false alarm": "there is no lesion, but one is predicted",
    "missed": "nothing is predicted",
    "wrong structure": "the prediction lies elsewhere: less than {overlap:.0%} of it is lesion, "
    "and less than {overlap:.0%} of the lesion is in it",
    "boundary only": "{near:.0%} or more of both outlines are within the tolerance of each other",
    "extra components": "Dice is {good} or more without the components that lie beside the lesion",
    "split": "several components where the lesion is one",
    "part of it": "{high:.0%} or more of the prediction is lesion, but it does not cover it",
    "too much": "{high:.0%} or more of the lesion is covered, but so is much else",
    "other": "prediction and lesion overlap, and each goes beyond the other",
}
GOOD = 0.8  # Dice
OVERLAP = 0.3  # share of prediction and of lesion
NEAR = 0.8  # share of the outlines
HIGH = 0.8  # precision or sensitivity
LARGE = 0.1  # share of the lesion from which a component counts


@dataclass(frozen=True)
class Components:
    """The connected components of a prediction.

    Attributes:
        labels: 0 outside, 1, 2, ... in the components, int32 (H, W).
        areas: pixels of components 1, 2, ..., (K,).
        hits: of these, pixels that are lesion, (K,).
    """

    labels: np.ndarray
    areas: np.ndarray
    hits: np.ndarray


def find_components(pred: np.ndarray, mask: np.ndarray) -> Components:
    """Components, 8 neighbours, of a prediction, bool (H, W), and their pixels in a reference."""
    count, labels = cv2.connectedComponents(pred.astype(np.uint8), connectivity=8)
    areas = np.bincount(labels.ravel(), minlength=count)[1:]
    hits = np.bincount(labels[mask], minlength=count)[1:]
    return Components(labels, areas, hits)


def count_components(mask: np.ndarray) -> int:
    """Number of components, 8 neighbours, of a mask, bool (H, W)."""
    return cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)[0] - 1


def failure_kind(pred: np.ndarray, mask: np.ndarray, distances: SurfaceDistances) -> str:
    """The kind of one prediction.

    Args:
        pred: predicted lesion, bool (H, W).
        mask: reference lesion, bool (H, W).
        distances: of both.

    Returns:
        A key of `KINDS`, the first that fits.
    """
    lesion = int(mask.sum())
    predicted = int(pred.sum())
    if lesion == 0:
        return "false alarm" if predicted else "good"
    if predicted == 0:
        return "missed"

    hit = int((pred & mask).sum())
    sensitivity = hit / lesion
    precision = hit / predicted
    if _dice(hit, predicted, lesion) >= GOOD:
        return "good"
    if sensitivity < OVERLAP and precision < OVERLAP:
        return "wrong structure"
    if distances.nsd >= NEAR:
        return "boundary only"

    components = find_components(pred, mask)
    on_lesion = components.hits > 0
    kept = int(components.areas[on_lesion].sum())
    if _dice(hit, kept, lesion) >= GOOD:
        return "extra components"
    large = components.hits >= LARGE * lesion
    if large.sum() > 1 and count_components(mask) == 1:
        return "split"
    if precision >= HIGH:
        return "part of it"
    if sensitivity >= HIGH:
        return "too much"
    return "other"


def describe_kinds(tolerance: str) -> dict[str, str]:
    """Each kind in a sentence; `tolerance` is that of the outlines, with its unit."""
    described = {}
    for kind, text in KINDS.items():
        text = text.replace("the tolerance", f"{tolerance}")
        described[kind] = text.format(good=GOOD, overlap=OVERLAP, near=NEAR, high=HIGH)
    return described


def _dice(hit: int, predicted: int, lesion: int) -> float:
    return 2 * hit / (predicted + lesion)
