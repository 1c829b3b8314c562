"""How a network's probabilities become labels, and what is reported of them. It needs no torch.

Labels: flips, a threshold, and rules for components. Reports: a temperature, the confidence, and
that below which a picture is flagged. `ovseg postprocess` chooses them on the validation split.
"""

import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ovseg.core.components import label_components
from ovseg.core.errors import InputError, first_five
from ovseg.core.registry import choose

FLIPS = {"horizontal": -1, "vertical": -2}  # the axis of (N, channels, H, W) that is reversed
TEMPERATURES = (0.2, 5.0)  # the lowest and the highest


def flip_axes(flips: Sequence[str]) -> list[tuple[int, ...]]:
    """The axes that each view of a picture reverses: none, then one flip, then two at once.

    Args:
        flips: names of `FLIPS`.
    """
    views = []
    for count in range(len(flips) + 1):
        for names in itertools.combinations(flips, count):
            views.append(tuple(FLIPS[name] for name in names))
    return views


@dataclass(frozen=True)
class Postprocessing:
    """How probabilities become labels and reports; without arguments the plain threshold 0.5.

    Attributes:
        flips: names of `FLIPS`; probabilities are the average over the picture and its flips, with
            two names in all four ways.
        threshold: lesion is where the probability is above it, 0 < t < 1. With more classes than
            one the most probable class counts, and the threshold stays 0.5.
        keep_largest: keep only the largest component of the lesion (8 neighbours), the first of
            equal ones.
        min_area: drop components below this share of the picture's pixels, 0..1.
        fill_holes: background that the lesion encloses becomes lesion, before components are
            measured; with categories, the most probable one.
        temperature: by which logits are divided for the probabilities that are reported, see
            `calibrate`; labels are made of the undivided ones. Within `TEMPERATURES`.
        flag_confidence: a picture of this confidence (see
            `expected_dice`) or of a lower one is flagged, 0..1; None
            where no such confidence was chosen.
        failure_dice: Dice below which a prediction failed when `flag_confidence` was chosen, 0..1.

    Raises:
        InputError: a value is out of range.
    """

    flips: Sequence[str] = ()
    threshold: float = 0.5
    keep_largest: bool = False
    min_area: float = 0.0
    fill_holes: bool = False
    temperature: float = 1.0
    flag_confidence: float | None = None
    failure_dice: float = 0.7

    def __post_init__(self) -> None:
        for name in self.flips:
            choose("flip", name, FLIPS)
        if len(set(self.flips)) < len(self.flips):
            raise InputError(
                f"flips of post-processing are {first_five(self.flips)}, expected each once."
            )
        object.__setattr__(self, "flips", tuple(self.flips))
        _check_number("threshold", self.threshold, 1e-6, 1 - 1e-6)
        _check_number("min_area", self.min_area, 0, 1)
        _check_bool("keep_largest", self.keep_largest)
        _check_bool("fill_holes", self.fill_holes)
        _check_number("temperature", self.temperature, *TEMPERATURES)
        if self.flag_confidence is not None:
            _check_number("flag_confidence", self.flag_confidence, 0, 1)
        _check_number("failure_dice", self.failure_dice, 0, 1)

    @property
    def changes(self) -> list[str]:
        """What labels and probabilities have beyond the plain threshold 0.5, in words."""
        words = []
        if self.flips:
            words.append(f"flips {' and '.join(self.flips)}")
        if self.threshold != 0.5:
            words.append(f"threshold {self.threshold:g}")
        if self.fill_holes:
            words.append("holes filled")
        if self.min_area > 0:
            words.append(f"components of {100 * self.min_area:g} % and more")
        if self.keep_largest:
            words.append("largest component")
        if self.temperature != 1:
            words.append(f"temperature {self.temperature:g}")
        return words

    def __str__(self) -> str:
        return ", ".join(self.changes) or "threshold 0.5"

    def labels(self, probs: np.ndarray, pixels: int | None = None) -> np.ndarray:
        """Labels of one picture.

        Args:
            probs: float32 (classes, H, W) in 0..1, averaged over the flips already.
            pixels: number of pixels of the picture, for `min_area`, where it does not fill the
                array.

        Returns:
            uint8 (H, W): 0 and 1, or category ids.
        """
        one_class = len(probs) == 1
        if one_class:
            labels = (probs[0] > self.threshold).astype(np.uint8)
        else:
            labels = probs.argmax(0).astype(np.uint8)
        changes_lesion = self.keep_largest or self.fill_holes or self.min_area > 0
        if not changes_lesion or not labels.any():
            return labels

        lesion = self._clean(labels > 0, self.min_area * (pixels or labels.size))
        filled = lesion & (labels == 0)
        labels[~lesion] = 0
        labels[filled] = 1 if one_class else probs[1:, filled].argmax(0) + 1
        return labels

    def calibrate(self, probs: np.ndarray) -> np.ndarray:
        """The probabilities that are reported: those of logits / `temperature`.

        One class: sigmoid(logit(p) / T). More classes: softmax(log(p) / T). Both are p^(1/T),
        divided by its sum over the classes.

        Args:
            probs: float32 (classes, H, W) in 0..1, as `labels` takes them.

        Returns:
            float32, same shape.

        Source: C. Guo et al., On calibration of modern neural networks, ICML 2017.
        """
        if self.temperature == 1:
            return probs
        # Interpolation can leave the range by a rounding error.
        safe = probs.clip(0, 1)
        power = np.float32(1 / self.temperature)
        scaled = safe**power
        if len(probs) == 1:
            return scaled / (scaled + (1 - safe) ** power)
        return scaled / scaled.sum(0)

    @property
    def reported_threshold(self) -> float:
        """The threshold among the probabilities that are reported, see `calibrate`."""
        raw = np.full((1, 1, 1), self.threshold, np.float32)
        return float(self.calibrate(raw)[0, 0, 0])

    def is_flagged(self, confidence: float) -> bool | None:
        """Whether a picture of this confidence is flagged; None without `flag_confidence`."""
        if self.flag_confidence is None:
            return None
        return confidence <= self.flag_confidence

    def _clean(self, lesion: np.ndarray, min_pixels: float) -> np.ndarray:
        """The components that are kept, with their holes filled if asked.

        Args:
            lesion: bool (H, W), not empty.
            min_pixels: smallest component that is kept.
        """
        # Most of a picture is not lesion, so only its bounding box is searched.
        rows = np.flatnonzero(lesion.any(1))
        columns = np.flatnonzero(lesion.any(0))
        box = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
        part = lesion[box]
        if self.fill_holes:
            part = _fill_holes(part)

        components = label_components(part, diagonal=True)
        areas = np.bincount(components.ravel())
        areas[0] = 0  # the background
        kept = (areas >= min_pixels) & (areas > 0)
        if self.keep_largest:
            kept &= np.arange(len(areas)) == areas.argmax()
        clean = np.zeros_like(lesion)
        clean[box] = kept[components]
        return clean


def to_dict(postprocessing: Postprocessing) -> dict[str, Any]:
    """The arguments of a `Postprocessing`, as JSON holds them."""
    return {**asdict(postprocessing), "flips": list(postprocessing.flips)}


def lesion_of_classes(probs: np.ndarray) -> np.ndarray:
    """Probability of lesion, float32 (H, W), of those of the classes, (classes, H, W).

    It is that of the one class, or 1 - that of the background.
    """
    if len(probs) == 1:
        return probs[0]
    return 1 - probs[0]


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


def _fill_holes(lesion: np.ndarray) -> np.ndarray:
    """The lesion, bool (H, W), with the background that it encloses.

    Equal to scipy's binary_fill_holes.
    """
    background = label_components(~np.pad(lesion, 1), diagonal=False)
    outside = background[0, 0]
    return (background != outside)[1:-1, 1:-1]


def _check_number(name: str, value: object, low: float, high: float) -> None:
    if not isinstance(value, int | float) or not low <= value <= high:
        raise InputError(
            f"{name} of post-processing is {value!r}, expected a number within {low:g}..{high:g}."
        )


def _check_bool(name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise InputError(f"{name} of post-processing is {value!r}, expected true or false.")
