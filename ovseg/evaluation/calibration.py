"""Whether probabilities mean what they say, and whether confidence tells failures.

Source: C. Guo et al., On calibration of modern neural networks, ICML 2017 (expected calibration
error, temperature); Y. Geifman et al., Bias-reduced uncertainty estimation for deep neural
classifiers, ICLR 2019 (area under the risk-coverage curve).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from ovseg.inference.labels import TEMPERATURES

BINS = 15  # as in Guo et al.
# Each is 1.033 times the one before; the middle one is 1.
TEMPERATURE_STEPS = np.geomspace(*TEMPERATURES, 101).round(4)
# More than enough for one number: of 100 images they are a million pixels.
SAMPLED_PIXELS = 10_000
# Below it float32 can't tell 1 - p from 1.
SMALLEST_PROBABILITY = 1e-7


class Reliability:
    """Counts of pixels by their probability, gathered image by image.

    Args:
        bins: of equal width.
    """

    def __init__(self, bins: int = BINS):
        self.edges = np.linspace(0, 1, bins + 1)
        self.pixels = np.zeros(bins)
        self.lesion = np.zeros(bins)
        self.probs = np.zeros(bins)
        self.squares = 0.0

    def add(self, probs: np.ndarray, mask: np.ndarray) -> None:
        """Add an image: lesion probabilities, float (H, W) in 0..1, and reference, bool (H, W)."""
        flat = probs.ravel().astype(np.float64)
        lesion = mask.ravel()
        which = np.minimum((flat * len(self.pixels)).astype(int), len(self.pixels) - 1)
        count = len(self.pixels)
        self.pixels += np.bincount(which, minlength=count)
        self.lesion += np.bincount(which, weights=lesion, minlength=count)
        self.probs += np.bincount(which, weights=flat, minlength=count)
        self.squares += float(((flat - lesion) ** 2).sum())

    def merge(self, other: "Reliability") -> None:
        """Add the images of another one of as many bins."""
        self.pixels += other.pixels
        self.lesion += other.lesion
        self.probs += other.probs
        self.squares += other.squares

    def summary(self) -> dict[str, Any]:
        """`error`, `brier` and `bins`, see `table`, as JSON has it."""
        return {"error": self.error, "brier": self.brier, "bins": self.table()}

    def table(self) -> dict[str, list[float | None]]:
        """Of each bin: `pixels`, their share of all; mean `probability`; share of `lesion`."""
        used = self.pixels > 0
        safe = np.where(used, self.pixels, 1)
        return {
            "pixels": (self.pixels / self.pixels.sum()).tolist(),
            "probability": _none_where(~used, self.probs / safe),
            "lesion": _none_where(~used, self.lesion / safe),
        }

    @property
    def error(self) -> float:
        """Expected calibration error, 0..1: mean |probability - share of lesion| over pixels."""
        return float(np.abs(self.probs - self.lesion).sum() / self.pixels.sum())

    @property
    def brier(self) -> float:
        """Brier score, 0..1: mean squared difference of probability and reference over pixels."""
        return float(self.squares / self.pixels.sum())


class TemperatureFit:
    """Cross-entropy of pixels at each of `TEMPERATURE_STEPS`, gathered image by image.

    Probabilities at temperature T are those of `Postprocessing.calibrate`. Of each image at most
    about `SAMPLED_PIXELS` pixels are used, evenly spaced, and weigh as much as all of it.
    """

    def __init__(self) -> None:
        self.losses = np.zeros(len(TEMPERATURE_STEPS))

    def add(self, probs: np.ndarray, labels: np.ndarray) -> None:
        """Add an image.

        Args:
            probs: float32 (classes, H, W) in 0..1, without temperature.
            labels: reference ids, 0/1 for one class, uint8 (H, W).
        """
        step = max(1, labels.size // SAMPLED_PIXELS)
        classes = probs.reshape(len(probs), -1)[:, ::step].astype(np.float64)
        if len(probs) == 1:
            classes = np.concatenate([1 - classes, classes])
        ids = labels.ravel()[::step].astype(np.int64)
        logs = np.log(classes.clip(SMALLEST_PROBABILITY, 1))
        of_reference = np.take_along_axis(logs, ids[None], axis=0)[0]
        for index, temperature in enumerate(TEMPERATURE_STEPS):
            of_all = np.log(np.exp(logs / temperature).sum(0))
            loss = of_all - of_reference / temperature
            self.losses[index] += step * loss.sum()

    @property
    def temperature(self) -> float:
        """The one of `TEMPERATURE_STEPS` with the least cross-entropy."""
        return float(TEMPERATURE_STEPS[self.losses.argmin()])


@dataclass(frozen=True)
class RiskCoverage:
    """Mean error of the images that are kept when the least confident ones are set aside.

    Attributes:
        coverage: share of images kept, 1/N, 2/N, ..., 1.
        risk: mean of 1 - score of those, for each coverage.
        area: mean of `risk`, below.
        random: the area of a confidence that says nothing.
        perfect: the area of one that orders the images by their score.
    """

    coverage: list[float]
    risk: list[float]
    area: float
    random: float
    perfect: float


def risk_coverage(scores: np.ndarray, confidence: np.ndarray) -> RiskCoverage:
    """The risk-coverage curve of a score.

    Args:
        scores: of each image, (N,) in 0..1, without NaN.
        confidence: of each image, (N,), higher is surer.

    Raises:
        ValueError: there is no image.
    """
    if len(scores) == 0:
        raise ValueError("There is no image, expected one or more.")
    risks = 1 - scores
    kept = np.arange(1, len(scores) + 1)
    order = np.argsort(-confidence, kind="stable")
    risk = np.cumsum(risks[order]) / kept
    best = np.cumsum(np.sort(risks)) / kept
    return RiskCoverage(
        coverage=(kept / len(scores)).tolist(),
        risk=risk.tolist(),
        area=float(risk.mean()),
        random=float(risks.mean()),
        perfect=float(best.mean()),
    )


def flag_threshold(scores: np.ndarray, confidence: np.ndarray, bad: float, recall: float) -> float:
    """The confidence below which images are flagged so that a share of the failures is flagged.

    Args:
        scores: of each image, (N,).
        confidence: of each image, (N,).
        bad: an image fails where its score is below this.
        recall: share of the failures to flag, 0..1.

    Returns:
        The smallest such threshold; images at it are flagged. -infinity where no image fails.
    """
    failed = np.sort(confidence[scores < bad])
    if len(failed) == 0:
        return -np.inf
    needed = int(np.ceil(recall * len(failed) - 1e-9))  # 0.9 * 10 is no more than 9
    return float(failed[max(needed, 1) - 1])


def count_flags(
    scores: np.ndarray, confidence: np.ndarray, threshold: float, bad: float
) -> dict[str, Any]:
    """What flags find: images of a low confidence among those that fail and those that don't.

    Args:
        scores: of each image, (N,).
        confidence: of each image, (N,).
        threshold: images of this confidence or a lower one are flagged.
        bad: an image fails where its score is below this.

    Returns:
        `confidence`, the threshold; `failure_dice`, `bad`; numbers of `images`, of `failures`, of
        `flagged` images and of `flagged_failures`; `flagged_share` of the images; `recall`, the
        share of the failures that are flagged, None where none fails.
    """
    failed = scores < bad
    flagged = confidence <= threshold
    failures = int(failed.sum())
    hits = int((failed & flagged).sum())
    return {
        "confidence": threshold,
        "failure_dice": bad,
        "images": len(scores),
        "failures": failures,
        "flagged": int(flagged.sum()),
        "flagged_failures": hits,
        "flagged_share": float(flagged.mean()),
        "recall": hits / failures if failures else None,
    }


def describe_calibration(summary: dict[str, Any]) -> str:
    """The calibration error of an evaluation, and that without temperature, in a sentence."""
    calibration = summary["calibration"]
    temperature = summary["postprocessing"]["temperature"]
    text = f"Calibration error {calibration['error']:.4f}"
    if temperature == 1:
        return f"{text}."
    raw = calibration["raw"]["error"]
    return f"{text} at temperature {temperature:g}, {raw:.4f} without it."


def describe_flags(flags: dict[str, Any]) -> str:
    """What `count_flags` found, in a sentence."""
    text = (
        f"{flags['flagged']} of {flags['images']} images ({flags['flagged_share']:.0%}) have a "
        f"confidence of {flags['confidence']:g} or less and are flagged"
    )
    bad = f"with a Dice below {flags['failure_dice']:g}, for which flags were chosen,"
    if flags["recall"] is None:
        return f"{text}; there are no images {bad.rstrip(',')}."
    return (
        f"{text}, among them {flags['flagged_failures']} of the {flags['failures']} {bad} "
        f"({flags['recall']:.0%})."
    )


def _none_where(missing: np.ndarray, values: np.ndarray) -> list[float | None]:
    found: list[float | None] = []
    for absent, value in zip(missing, values, strict=True):
        found.append(None if absent else float(value))
    return found
