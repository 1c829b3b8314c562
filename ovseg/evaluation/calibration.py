"""Whether probabilities mean what they say, and whether confidence tells failures.

Source: C. Guo et al., On calibration of modern neural networks, ICML 2017 (expected calibration
error, temperature); Y. Geifman et al., Bias-reduced uncertainty estimation for deep neural
classifiers, ICLR 2019 (area under the risk-coverage curve).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import minimize_scalar

BINS = 15  # as in Guo et al.
# Logits are counted in steps of 0.02; beyond 20 a probability is within 2e-9 of 0 or 1.
LOGIT_EDGES = np.linspace(-20, 20, 2001)
TEMPERATURES = (0.2, 5.0)  # between which the best is searched


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


class LogitCounts:
    """Counts of pixels by their logit, from which a temperature is fitted."""

    def __init__(self) -> None:
        self.lesion = np.zeros(len(LOGIT_EDGES) - 1)
        self.background = np.zeros(len(LOGIT_EDGES) - 1)

    def add(self, logits: np.ndarray, mask: np.ndarray) -> None:
        """Add pixels: lesion logits, float, and reference, bool of the same shape."""
        cut = np.clip(logits, LOGIT_EDGES[0], LOGIT_EDGES[-1])
        self.lesion += np.histogram(cut[mask], LOGIT_EDGES)[0]
        self.background += np.histogram(cut[~mask], LOGIT_EDGES)[0]

    def loss(self, temperature: float) -> float:
        """Mean cross-entropy of logits / temperature."""
        middles = (LOGIT_EDGES[:-1] + LOGIT_EDGES[1:]) / 2 / temperature
        total = self.lesion @ np.logaddexp(0, -middles) + self.background @ np.logaddexp(0, middles)
        return float(total / (self.lesion.sum() + self.background.sum()))

    def fit_temperature(self) -> float:
        """The temperature, within `TEMPERATURES`, of the least cross-entropy."""
        bounds = np.log(TEMPERATURES)
        found = minimize_scalar(lambda log: self.loss(np.exp(log)), bounds=bounds, method="bounded")
        return float(np.exp(found.x))


def expected_dice(probs: np.ndarray, pred: np.ndarray) -> float:
    """The confidence of a prediction: about the Dice that its own probabilities expect.

    It is 2 sum(p over the prediction) / (pixels of the prediction + sum p). Of an empty prediction
    it is 1 - the largest probability.

    Args:
        probs: lesion probabilities, float (H, W) in 0..1.
        pred: predicted lesion, bool (H, W).

    Returns:
        0..1; it is no calibrated probability.
    """
    if not pred.any():
        return float(1 - probs.max())
    inside = float(probs[pred].sum(dtype=np.float64))
    everywhere = float(probs.sum(dtype=np.float64))
    return 2 * inside / (int(pred.sum()) + everywhere)


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


def _none_where(missing: np.ndarray, values: np.ndarray) -> list[float | None]:
    found: list[float | None] = []
    for absent, value in zip(missing, values, strict=True):
        found.append(None if absent else float(value))
    return found
