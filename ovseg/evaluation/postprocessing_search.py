"""Choose a run's post-processing (flips, threshold, clean-up) on its validation images; see `ovseg.inference.postprocessing`."""

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pytorch_lightning.utilities import rank_zero_info

from ovseg import __version__
from ovseg.core.checkpoints import Member, checkpoint_digest, read_members
from ovseg.core.console import print_table
from ovseg.core.errors import InputError
from ovseg.core.files import write_json
from ovseg.core.registry import choose
from ovseg.core.runs import RunFolder
from ovseg.data.augment.pipelines import build_transform
from ovseg.evaluation.evaluate import Evaluation
from ovseg.inference.postprocessing import FLIPS, Postprocessing, to_dict
from ovseg.inference.predictor import class_probs
from ovseg.metrics import SCORES, scores_of_counts

METRICS = {
    name: f"mean {score.label} per image"
    for name, score in SCORES.items()
    if score.at_original_size
}
THRESHOLDS = tuple(tenth / 10 for tenth in range(1, 10))
# Shares of the picture; the smallest lesion in a validation split of OTU_2d covers 0.007.
CLEANUPS = ({}, {"min_area": 0.002}, {"min_area": 0.005}, {"keep_largest": True})
FLIPPING = {  # albumentations' transforms that mirror
    "HorizontalFlip": ("horizontal",),
    "VerticalFlip": ("vertical",),
    "D4": ("horizontal", "vertical"),
    "SquareSymmetry": ("horizontal", "vertical"),
}
GAIN = 0.001  # a smaller one is not worth another rule: a few hundred images do not tell it from chance


def search_postprocessing(
    run: Path,
    metric: str = "dice",
    split: str = "valid",
    data: Path | None = None,
    batch_size: int = 4,
    device: str = "auto",
) -> dict[str, Any]:
    """Try post-processing settings on a split, and write the one of the best mean score at the original sizes to `postprocessing.json`.

    Of post-processing settings whose scores are within `GAIN` of the best the simplest is taken. Flips are tried where the run's
    augmentation has them, all together or none. The score is of the images it was chosen on, so it is too good: the
    result is that of the test split.

    Of an ensemble each member is tried alone on its own split, and all their images count: the members of a
    cross-validation have seen one another's validation images, so their average can't be judged there.

    Args:
        run: run folder, or the folder of an ensemble.
        metric: a name of `METRICS`; images that it can't score (see `ovseg.metrics`) are left out.
        split: `valid` or `train`.
        data: dataset folder, if it is not the one of training.
        batch_size: images at a time.
        device: see `ovseg.inference.predictor.choose_device`.

    Returns:
        What is written: the post-processing, what it was chosen on and for, the score of every candidate, best first.

    Raises:
        InputError: the test split, no run folder, or a split where nothing can be scored.
    """
    choose("metric", metric, METRICS)
    if split == "test":
        raise InputError(
            "--split test: post-processing chosen on the test images spoils them. Choose it on valid."
        )
    target = RunFolder(Path(run)).postprocessing
    if not target.parent.is_dir():
        raise InputError(
            f"{run} is no run folder, so it has no place for {target.name}. Name the run folder."
        )
    members = read_members(run)
    candidates = list_candidates(flips_of_all(members), members[0].classes)
    evaluations = [
        Evaluation(member.path, split, data, batch_size, device, postprocessing=False)
        for member in members
    ]
    counts = torch.cat([try_candidates(evaluation, candidates) for evaluation in evaluations], 1)
    root = evaluations[0].datamodule.root
    if not counts[..., [0, 2]].any():
        raise InputError(f"No image of {split} in {root} has a lesion, so nothing can be chosen.")
    scores = scores_of_counts(*counts.unbind(-1))[metric].nanmean(1).tolist()
    best = simplest(candidates, scores)
    order = sorted(range(len(scores)), key=lambda i: -scores[i])
    result = {
        "postprocessing": to_dict(candidates[best]),
        "score": scores[best],
        "plain_score": scores[candidates.index(Postprocessing())],
        "metric": f"{METRICS[metric]}, original size",
        "split": split,
        "data": str(root),
        "images": counts.shape[1],
        "members": [str(member.path) for member in members],
        "checkpoint_sha256": checkpoint_digest(*(member.path for member in members)),
        "version": __version__,
        "candidates": [{**to_dict(candidates[i]), "score": scores[i]} for i in order],
    }
    write_json(target, result)
    return result


def list_candidates(flips: tuple[str, ...], classes: int) -> list[Postprocessing]:
    """Every post-processing to try; a threshold is for one class only."""
    thresholds = THRESHOLDS if classes == 1 else (0.5,)
    grid = itertools.product(dict.fromkeys(((), flips)), thresholds, CLEANUPS, (False, True))
    return [
        Postprocessing(turns, threshold, **cleanup, fill_holes=fill)
        for turns, threshold, cleanup, fill in grid
    ]


def try_candidates(evaluation: Evaluation, candidates: list[Postprocessing]) -> torch.Tensor:
    """Pixels of the lesion at original sizes, int64 (candidates, images, 4): hit, false, missed and rest."""
    counts: list[list[list[int]]] = []
    for batch in evaluation.loader():
        image, known = batch["image"].to(evaluation.device), {}
        for flips in dict.fromkeys(candidate.flips for candidate in candidates):
            known[flips] = class_probs(evaluation.logits(image, flips))
        for row, stem in enumerate(batch["stem"]):
            squares = {flips: probs[row] for flips, probs in known.items()}
            counts.append(list(_count(evaluation, stem, squares, candidates)))
    return torch.tensor(counts).transpose(0, 1)


def _count(
    evaluation: Evaluation,
    stem: str,
    squares: dict[tuple[str, ...], np.ndarray],
    candidates: list[Postprocessing],
) -> Iterator[list[int]]:
    """Hit, false, missed and rest of each candidate for one image; `squares` are its probabilities for each flips."""
    originals = {
        flips: evaluation.original_probs(stem, square) for flips, square in squares.items()
    }
    for candidate in candidates:
        probs, mask = originals[candidate.flips]
        pred, lesion = candidate.labels(probs) > 0, mask > 0
        hit, found, real = (int(np.count_nonzero(area)) for area in (pred & lesion, pred, lesion))
        yield [hit, found - hit, real - hit, mask.size - found - real + hit]


def simplest(candidates: list[Postprocessing], scores: list[float]) -> int:
    """The index of the candidate with the fewest changes among those within `GAIN` of the best; then the best."""
    best = max(scores)
    good = [i for i, score in enumerate(scores) if score >= best - GAIN]
    return min(good, key=lambda i: (len(candidates[i].changes), -scores[i]))


def flips_of_all(members: Sequence[Member]) -> tuple[str, ...]:
    """The flips that every member met in training."""
    seen = [seen_flips(member.data["augmentation"]) for member in members]
    return tuple(name for name in FLIPS if all(name in flips for flips in seen))


def seen_flips(augmentation: str) -> tuple[str, ...]:
    """Which flips a network met in training: a mirrored picture is strange to one that met none.

    Args:
        augmentation: of training, see `ovseg.data.augment.pipelines.build_transform`. Where its file is gone, a message says
            that no flips are tried.
    """
    try:
        steps, seen = [build_transform(augmentation)], set()
    except InputError as error:
        rank_zero_info(f"No flips are tried, since the run's augmentation is unknown: {error}")
        return ()
    while steps:
        step = steps.pop()
        if step is not None and step.p > 0:
            seen.update(FLIPPING.get(type(step).__name__, ()))
            steps += getattr(step, "transforms", [])
    return tuple(name for name in FLIPS if name in seen)


def print_search(result: dict[str, Any]) -> None:
    """The chosen post-processing, the plain one, and the five best, as a table on the terminal."""
    chosen, plain = result["postprocessing"], to_dict(Postprocessing())
    rows = [("chosen", str(Postprocessing(**chosen)), f"{result['score']:.4f}")]
    rows.append(("without", str(Postprocessing(**plain)), f"{result['plain_score']:.4f}"))
    for rank, candidate in enumerate(result["candidates"][:5], 1):
        words = {name: value for name, value in candidate.items() if name != "score"}
        rows.append((f"best {rank}", str(Postprocessing(**words)), f"{candidate['score']:.4f}"))
    title = f"{result['metric']}, {result['images']} images of {result['split']}, {len(result['candidates'])} tried"
    print_table(("", "post-processing", "score"), rows, title)
