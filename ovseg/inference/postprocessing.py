"""Probabilities of pictures and their flips, and the post-processing that a run folder holds.

`ovseg postprocess` chooses it on the validation split and writes it as `postprocessing.json`.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from msgspec import Struct
from torch import Tensor
from torch.nn import functional

from ovseg.core.errors import InputError
from ovseg.core.runs import RunFolder
from ovseg.core.schema import read_json
from ovseg.inference.labels import Postprocessing, flip_axes


class PostprocessingEntry(Struct, forbid_unknown_fields=True):
    """The arguments of a `Postprocessing`, which checks their ranges itself."""

    flips: list[str] = []
    threshold: float = 0.5
    keep_largest: bool = False
    min_area: float = 0.0
    fill_holes: bool = False
    temperature: float = 1.0
    flag_confidence: float | None = None
    failure_dice: float = 0.7


class PostprocessingFile(Struct):
    """What is read of `postprocessing.json`."""

    postprocessing: PostprocessingEntry
    checkpoint_sha256: str


def average_flips(
    network: Callable[[Tensor], Tensor], image: Tensor, flips: Sequence[str]
) -> Tensor:
    """Logits of the average probabilities over pictures and their flips.

    Args:
        network: from pictures to logits (N, classes, H, W), any engine.
        image: uint8 (N, 3, H, W).
        flips: see `Postprocessing`.

    Returns:
        Logits (N, classes, H, W), see `mean_logits`.
    """
    return mean_logits(flip_logits(network, image, flips))


def flip_logits(
    network: Callable[[Tensor], Tensor], image: Tensor, flips: Sequence[str]
) -> list[Tensor]:
    """Logits of pictures and of each of their flips, which are flipped back.

    Args:
        network: see `average_flips`.
        image: uint8 (N, 3, H, W).
        flips: see `Postprocessing`.

    Returns:
        Logits (N, classes, H, W) of the pictures as they are, then of one flip, then of two at
        once.
    """
    logits = [network(image)]
    for axes in flip_axes(flips)[1:]:
        logits.append(network(image.flip(axes)).flip(axes))
    return logits


def to_probs(logits: Tensor) -> Tensor:
    """Probabilities of logits (N, classes, H, W), float32 of the same shape.

    Of one class it is the lesion's; of more classes, the first of which is the background, they sum
    to 1 in each pixel.
    """
    logits = logits.float()
    if logits.shape[1] == 1:
        return logits.sigmoid()
    return logits.softmax(1)


def mean_logits(logits: Sequence[Tensor]) -> Tensor:
    """Logits whose probabilities are the mean of the probabilities of some logits.

    One class: log mean(p) - log mean(1 - p). More classes: log mean(softmax). Both are exact where
    probabilities are nearly 0 or 1.

    Args:
        logits: at least one, each (N, classes, H, W).

    Returns:
        float32 (N, classes, H, W); a single entry is returned as it is.
    """
    if len(logits) == 1:
        return logits[0]
    stack = torch.stack([entry.float() for entry in logits])
    if stack.shape[2] > 1:
        return stack.log_softmax(2).logsumexp(0) - float(np.log(len(logits)))
    lesion = functional.logsigmoid(stack).logsumexp(0)
    background = functional.logsigmoid(-stack).logsumexp(0)
    return lesion - background


def read_postprocessing(run: Path, digest: str, classes: int) -> Postprocessing | None:
    """The post-processing of a run folder.

    Args:
        run: run folder or checkpoint.
        digest: SHA-256 of the checkpoint that it must have been chosen for, see
            `ovseg.core.checkpoints.checkpoint_digest`.
        classes: of the network.

    Returns:
        None for a run folder without one, and for a checkpoint.

    Raises:
        InputError: the file is damaged, or was chosen for another checkpoint.
    """
    path = RunFolder(Path(run)).postprocessing
    if not path.exists():
        return None
    remedy = f"Choose again with ovseg postprocess --run {run}, or add --no_postprocessing."
    found = read_json(path, PostprocessingFile, "ovseg postprocess", remedy)
    try:
        postprocessing = Postprocessing(**found["postprocessing"])
    except InputError as error:
        raise InputError(
            f"{path} is not what ovseg postprocess writes ({error}). {remedy}"
        ) from None
    chosen_for = found["checkpoint_sha256"]
    if chosen_for != digest:
        raise InputError(
            f"{path} was chosen for another checkpoint (sha256 {str(chosen_for)[:12]}, "
            f"here {digest[:12]}). {remedy}"
        )
    if classes > 1 and postprocessing.threshold != 0.5:
        raise InputError(
            f"{path} has threshold {postprocessing.threshold}, but {classes} classes have none. "
            f"{remedy}"
        )
    return postprocessing
