"""What stands between a network and its labels: an average over flips, a threshold, and rules for components.

`ovseg postprocess` chooses post-processing on the validation split and keeps it in the run folder as `postprocessing.json`.
"""

import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from ovseg.core.errors import InputError
from ovseg.core.registry import choose
from ovseg.core.runs import RunFolder

FLIPS = {"horizontal": -1, "vertical": -2}  # the axis of (N, channels, H, W) that is turned round


@dataclass(frozen=True)
class Postprocessing:
    """How probabilities become labels; without arguments the plain 0.5.

    Attributes:
        flips: names of `FLIPS`; probabilities are the average over the picture and its flips, of two names in all
            four ways.
        threshold: lesion is where the probability is above it, 0 < t < 1; of more classes than one the most probable
            class counts, and the threshold stays 0.5.
        keep_largest: keep only the largest component of the lesion (8 neighbours), the first of equal ones.
        min_area: drop components below this share of the picture's pixels, 0..1.
        fill_holes: background that the lesion encloses becomes lesion, before components are measured; of categories
            the most probable one.

    Raises:
        InputError: a value out of range.
    """

    flips: Sequence[str] = ()
    threshold: float = 0.5
    keep_largest: bool = False
    min_area: float = 0.0
    fill_holes: bool = False

    def __post_init__(self) -> None:
        for name in self.flips:
            choose("flip", name, FLIPS)
        object.__setattr__(self, "flips", tuple(self.flips))
        for name, low, high in (("threshold", 1e-6, 1 - 1e-6), ("min_area", 0, 1)):
            value = getattr(self, name)
            if not isinstance(value, int | float) or not low <= value <= high:
                raise InputError(
                    f"{name} of post-processing is {value!r}, expected a number within {low:g}..{high:g}."
                )
        for name in ("keep_largest", "fill_holes"):
            if not isinstance(getattr(self, name), bool):
                raise InputError(
                    f"{name} of post-processing is {getattr(self, name)!r}, expected true or false."
                )

    @property
    def changes(self) -> list[str]:
        """What differs from the plain 0.5, in words."""
        words = {
            f"flips {' and '.join(self.flips)}": bool(self.flips),
            f"threshold {self.threshold:g}": self.threshold != 0.5,
            "holes filled": self.fill_holes,
            f"components of {100 * self.min_area:g} % and more": self.min_area > 0,
            "largest component": self.keep_largest,
        }
        return [word for word, said in words.items() if said]

    def __str__(self) -> str:
        return ", ".join(self.changes) or "threshold 0.5"

    def labels(self, probs: np.ndarray, pixels: int | None = None) -> np.ndarray:
        """Labels of one picture.

        Args:
            probs: averaged over the flips already, float32 (classes, H, W) in 0..1.
            pixels: of the picture, for `min_area`, where it does not fill the array.

        Returns:
            uint8 (H, W): 0 and 1, or category ids.
        """
        labels = (probs[0] > self.threshold if len(probs) == 1 else probs.argmax(0)).astype(
            np.uint8
        )
        if not (self.keep_largest or self.min_area or self.fill_holes) or not labels.any():
            return labels
        lesion = self._clean(labels > 0, self.min_area * (pixels or labels.size))
        filled = lesion & (labels == 0)
        labels[~lesion] = 0
        labels[filled] = 1 if len(probs) == 1 else probs[1:, filled].argmax(0) + 1
        return labels

    def _clean(self, lesion: np.ndarray, least: float) -> np.ndarray:
        """The components of a lesion, bool (H, W) and not empty, that count, without their holes; `least` in pixels."""
        rows, columns = (np.flatnonzero(lesion.any(axis)) for axis in (1, 0))
        inside = (
            slice(rows[0], rows[-1] + 1),
            slice(columns[0], columns[-1] + 1),
        )  # most of a picture is not lesion
        part, clean = lesion[inside], np.zeros_like(lesion)
        if self.fill_holes:
            outside = ndimage.label(~np.pad(part, 1))[
                0
            ]  # quicker than binary_fill_holes, the same result
            part = (outside != outside[0, 0])[1:-1, 1:-1]
        components = ndimage.label(part, np.ones((3, 3)))[0]
        areas = np.bincount(components.ravel())
        areas[0] = 0
        kept = (areas >= least) & (areas > 0)
        if self.keep_largest:
            kept &= np.arange(len(areas)) == areas.argmax()
        clean[inside] = kept[components]
        return clean


def average_flips(
    network: Callable[[Tensor], Tensor], image: Tensor, flips: Sequence[str]
) -> Tensor:
    """Logits of the probabilities that a network gives on average of pictures and their flips.

    Args:
        network: from pictures to logits (N, classes, H, W), any engine.
        image: uint8 (N, 3, H, W).
        flips: see `Postprocessing`.
    """
    axes = [
        axes for count in range(len(flips) + 1) for axes in itertools.combinations(flips, count)
    ]
    turned = [[FLIPS[name] for name in names] for names in axes]
    return mean_logits(
        [network(image.flip(dims)).flip(dims) if dims else network(image) for dims in turned]
    )


def mean_logits(logits: Sequence[Tensor]) -> Tensor:
    """Logits whose probabilities are the mean of the probabilities of some logits (N, classes, H, W); exact in tails.

    One class: log mean(p) - log mean(1 - p); more: log mean(softmax). A single entry comes back as it is.
    """
    if len(logits) == 1:
        return logits[0]
    stack = torch.stack([entry.float() for entry in logits])
    if stack.shape[2] > 1:
        return stack.log_softmax(2).logsumexp(0) - float(np.log(len(logits)))
    lesion, background = (
        torch.nn.functional.logsigmoid(sign * stack).logsumexp(0) for sign in (1, -1)
    )
    return lesion - background


def to_dict(postprocessing: Postprocessing) -> dict[str, Any]:
    """As JSON has it."""
    return {**asdict(postprocessing), "flips": list(postprocessing.flips)}


def read_postprocessing(run: Path, digest: str, classes: int) -> Postprocessing | None:
    """The post-processing of a run folder; None where it has none, and for a checkpoint that stands alone.

    Args:
        run: run folder or checkpoint.
        digest: sha256 of what the post-processing must have been chosen for, see `ovseg.core.checkpoints.checkpoint_digest`.
        classes: of the network.

    Raises:
        InputError: the file is damaged, or was chosen for another checkpoint.
    """
    path = RunFolder(Path(run)).postprocessing
    if not path.is_file():
        return None
    remedy = f"Choose again with ovseg postprocess --run {run}, or add --no-postprocessing."
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        postprocessing, chosen_for = (
            Postprocessing(**found["postprocessing"]),
            found["checkpoint_sha256"],
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = error if isinstance(error, InputError) else type(error).__name__
        raise InputError(
            f"{path} is not what ovseg postprocess writes ({reason}). {remedy}"
        ) from None
    if chosen_for != digest:
        raise InputError(
            f"{path} was chosen for another checkpoint (sha256 {str(chosen_for)[:12]}, here {digest[:12]}). {remedy}"
        )
    if classes > 1 and postprocessing.threshold != 0.5:
        raise InputError(
            f"{path} has threshold {postprocessing.threshold}, but {classes} classes have none. {remedy}"
        )
    return postprocessing
