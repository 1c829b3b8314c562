"""Choose a run's post-processing (flips, threshold, clean-up) on its validation images.

See `ovseg.inference.postprocessing` for what it does.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pytorch_lightning.utilities import rank_zero_info

from ovseg import __version__
from ovseg.core.checkpoints import Member, checkpoint_digest, read_members
from ovseg.core.console import print_table
from ovseg.core.errors import InputError
from ovseg.core.files import check_writable, write_json
from ovseg.core.registry import choose
from ovseg.core.runs import RunFolder
from ovseg.data.augment.pipelines import build_transform, flips_of
from ovseg.evaluation.evaluate import Evaluation
from ovseg.inference.postprocessing import FLIPS, Postprocessing, to_dict
from ovseg.inference.predictor import class_probs
from ovseg.metrics import SCORES, scores_of_counts

Flips = tuple[str, ...]

METRICS = {name: f"mean {SCORES[name].label} per image" for name in ("dice", "iou")}
THRESHOLDS = tuple(tenth / 10 for tenth in range(1, 10))
# Areas are shares of the picture. The smallest lesion in a validation split of OTU_2d has 0.007.
CLEANUPS: tuple[dict[str, Any], ...] = (
    {},
    {"min_area": 0.002},
    {"min_area": 0.005},
    {"keep_largest": True},
)
# A smaller gain does not justify another rule: over a few hundred images it may well be chance.
GAIN = 0.001


def search_postprocessing(
    run: Path,
    metric: str = "dice",
    split: str = "valid",
    data: Path | None = None,
    batch_size: int = 4,
    device: str = "auto",
    mask_threshold: int | None = None,
) -> dict[str, Any]:
    """Try post-processing settings on a split, and write the best to `postprocessing.json`.

    The best has the best mean score at the original sizes; among settings whose scores are
    within `GAIN` of it, the simplest is taken. Flips are tried where the run's augmentation has
    them, all together or none. The score is of the images on which the settings were chosen, so it
    is too good: report that of the test split.

    Each member of an ensemble is tried alone on its own split, and all their images count. The
    members of a cross-validation have seen one another's validation images, so their average can't
    be judged there.

    Args:
        run: run folder, or the folder of an ensemble.
        metric: a name of `METRICS`; images that it can't score (see `ovseg.metrics`) are left out.
        split: `valid` or `train`.
        data: dataset folder, if it is not the one of training.
        batch_size: images at a time.
        device: see `ovseg.core.device.choose_device`.
        mask_threshold: grey values of masks above it are lesion; None takes that of training.

    Returns:
        What is written: the post-processing, what it was chosen on and for, and the score of every
        candidate, best first.

    Raises:
        InputError: `split` is the test split, `run` is no run folder, or nothing can be scored.
    """
    choose("metric", metric, METRICS)
    if split == "test":
        raise InputError(
            "--split test: test scores would no longer be those of unseen images if "
            "post-processing were chosen on them. Choose it on valid."
        )
    target = RunFolder(Path(run)).postprocessing
    if not target.parent.is_dir():
        raise InputError(
            f"{run} is no run folder, so it has no place for {target.name}. Name the run folder."
        )
    check_writable(target)

    members = read_members(run)
    candidates = list_candidates(flips_of_all(members), members[0].classes)
    evaluations = []
    for member in members:
        evaluation = Evaluation(
            member.path,
            split,
            data,
            batch_size,
            device,
            postprocessing=False,
            mask_threshold=mask_threshold,
        )
        evaluations.append(evaluation)
    found = [try_candidates(evaluation, candidates) for evaluation in evaluations]
    counts = torch.cat(found, dim=1)

    root = evaluations[0].datamodule.root
    both, pred_only, mask_only, neither = counts.unbind(-1)
    if not both.any() and not mask_only.any():
        raise InputError(f"No image of {split} in {root} has a lesion, so nothing can be chosen.")
    of_images = scores_of_counts(both, pred_only, mask_only, neither)[metric]
    scores = of_images.nanmean(1).tolist()
    if SCORES[metric].best == "min":
        goodness = [-score for score in scores]
    else:
        goodness = scores
    best = find_simplest(candidates, goodness)
    ranking = sorted(range(len(scores)), key=lambda index: -goodness[index])
    result = {
        "postprocessing": to_dict(candidates[best]),
        "score": scores[best],
        "plain_score": scores[candidates.index(Postprocessing())],
        "metric": f"{METRICS[metric]}, original size",
        "split": split,
        "data": str(root),
        "images": counts.shape[1],
        "members": [str(member.path) for member in members],
        "checkpoint_sha256": checkpoint_digest(*[member.path for member in members]),
        "version": __version__,
        "candidates": [{**to_dict(candidates[i]), "score": scores[i]} for i in ranking],
    }
    write_json(target, result)
    return result


def list_candidates(flips: Flips, classes: int) -> list[Postprocessing]:
    """Every post-processing to try; thresholds are for one class only."""
    flip_choices = [()] if flips == () else [(), flips]
    thresholds = THRESHOLDS if classes == 1 else (0.5,)
    grid = itertools.product(flip_choices, thresholds, CLEANUPS, (False, True))
    return [
        Postprocessing(flips, threshold, **cleanup, fill_holes=fill_holes)
        for flips, threshold, cleanup, fill_holes in grid
    ]


def try_candidates(evaluation: Evaluation, candidates: list[Postprocessing]) -> torch.Tensor:
    """Numbers of pixels at original sizes for every candidate and image.

    Returns:
        int64 (candidates, images, 4): lesion in both maps, in the prediction only, in the mask
        only, in neither.
    """
    flip_choices = {tuple(candidate.flips) for candidate in candidates}
    counts = []
    for batch in evaluation.loader():
        image = batch["image"].to(evaluation.device)
        probs = {}
        for flips in flip_choices:
            probs[flips] = class_probs(evaluation.logits(image, flips))
        for index, stem in enumerate(batch["stem"]):
            squares = {flips: of_batch[index] for flips, of_batch in probs.items()}
            counts.append(list(_count_pixels(evaluation, stem, squares, candidates)))
    return torch.tensor(counts).transpose(0, 1)


def _count_pixels(
    evaluation: Evaluation,
    stem: str,
    squares: Mapping[Flips, np.ndarray],
    candidates: list[Postprocessing],
) -> Iterator[list[int]]:
    """The counts of one image for each candidate; `squares` are its probabilities by flips."""
    originals = {}
    for flips, square in squares.items():
        originals[flips] = evaluation.original_probs(stem, square)
    for candidate in candidates:
        probs, mask = originals[tuple(candidate.flips)]
        pred = candidate.labels(probs) > 0
        lesion = mask > 0
        both = int(np.count_nonzero(pred & lesion))
        pred_only = int(np.count_nonzero(pred)) - both
        mask_only = int(np.count_nonzero(lesion)) - both
        yield [both, pred_only, mask_only, mask.size - both - pred_only - mask_only]


def find_simplest(candidates: list[Postprocessing], scores: Sequence[float]) -> int:
    """The index of the candidate with the fewest changes among those within `GAIN` of the best.

    Of several with as few changes it is that of the highest score.
    """
    lowest = max(scores) - GAIN
    good = [index for index, score in enumerate(scores) if score >= lowest]
    return min(good, key=lambda index: (len(candidates[index].changes), -scores[index]))


def flips_of_all(members: Sequence[Member]) -> Flips:
    """The flips that every member has seen in training."""
    common = set(FLIPS)
    for member in members:
        common &= set(seen_flips(member.data["augmentation"]))
    return tuple(name for name in FLIPS if name in common)


def seen_flips(augmentation: str) -> Flips:
    """Which flips a network has seen in training; it predicts flips that it has not seen badly.

    Args:
        augmentation: of training, see `ovseg.data.augment.pipelines.build_transform`. Where its
            file is missing, a message says that no flips are tried.
    """
    try:
        seen = flips_of(build_transform(augmentation))
    except InputError as error:
        rank_zero_info(f"No flips are tried, since the run's augmentation is unknown: {error}")
        return ()
    return tuple(name for name in FLIPS if name in seen)


def print_search(result: dict[str, Any]) -> None:
    """The chosen post-processing, none, and the five best, as a table on the terminal."""
    chosen = Postprocessing(**result["postprocessing"])
    rows = [
        ("chosen", str(chosen), f"{result['score']:.4f}"),
        ("without", str(Postprocessing()), f"{result['plain_score']:.4f}"),
    ]
    candidates = result["candidates"]
    for rank, candidate in enumerate(candidates[:5], 1):
        settings = {name: value for name, value in candidate.items() if name != "score"}
        rows.append((f"best {rank}", str(Postprocessing(**settings)), f"{candidate['score']:.4f}"))
    title = (
        f"{result['metric']}, {result['images']} images of {result['split']}, "
        f"{len(candidates)} tried"
    )
    print_table(("", "post-processing", "score"), rows, title)
