"""Choose a run's post-processing on its validation images.

It is flips, threshold and clean-up, then a temperature, then the confidence below which pictures
are flagged. See `ovseg.inference.postprocessing` for what they do.
"""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
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
from ovseg.core.registry import check_arguments, choose
from ovseg.core.runs import RunFolder, refuse_export
from ovseg.data.augment.pipelines import build_transform, flips_of
from ovseg.evaluation.calibration import (
    TemperatureFit,
    count_flags,
    describe_flags,
    flag_threshold,
)
from ovseg.evaluation.evaluate import Evaluation
from ovseg.inference.labels import FLIPS, Postprocessing, to_dict
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
    failure_dice: float = 0.7,
    flag_recall: float = 0.9,
) -> dict[str, Any]:
    """Try post-processing settings on a split, and write the best to `postprocessing.json`.

    The best has the best mean score at the original sizes; among settings whose scores are
    within `GAIN` of it, the simplest is taken. Flips are tried where the run's augmentation has
    them, all together or none. The score is of the images on which the settings were chosen, so it
    is too good: report that of the test split.

    For the chosen flips the temperature is fitted on the pixels of the same images (see
    `TemperatureFit`); it changes no label. Then the lowest confidence is taken below which
    `flag_recall` of the failures are flagged; where no image fails, none is.

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
        failure_dice: an image fails where its Dice is below this, 0..1.
        flag_recall: share of the failures that flags are to find, 0..1.

    Returns:
        What is written: the post-processing; what it was chosen on and for; `flags`, see
        `count_flags`, None where no image fails; and the score of every candidate, best first.

    Raises:
        InputError: `split` is the test split, `run` is no run folder, a number is out of range, the
            images of `valid` were trained on, or nothing can be scored.
    """
    choose("metric", metric, METRICS)
    if split == "test":
        raise InputError(
            "--split test: test scores would no longer be those of unseen images if "
            "post-processing were chosen on them. Choose it on valid."
        )
    for name, value in (("failure_dice", failure_dice), ("flag_recall", flag_recall)):
        if not 0 < value <= 1:
            raise InputError(f"--{name} is {value:g}, expected a number above 0, up to 1.")
    refuse_export(Path(run))
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
    if split == "valid" and evaluations[0].trained_on:
        raise InputError(
            f"{run} was trained on the images of valid too (data.train_on_valid), so nothing can "
            "be chosen on them. Choose with --data on other images, or set the post-processing "
            "itself in the configuration, such as postprocess: {flips: [horizontal]}."
        )
    fits: dict[Flips, TemperatureFit] = {}
    found = [try_candidates(evaluation, candidates, fits) for evaluation in evaluations]
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
    chosen = replace(
        candidates[best],
        temperature=fits[tuple(candidates[best].flips)].temperature,
        failure_dice=failure_dice,
    )
    chosen, flags = choose_flags(evaluations, chosen, flag_recall)
    result = {
        "postprocessing": to_dict(chosen),
        "score": scores[best],
        "plain_score": scores[candidates.index(Postprocessing())],
        "metric": f"{METRICS[metric]}, original size",
        "split": split,
        "data": str(root),
        "images": counts.shape[1],
        "members": [str(member.path) for member in members],
        "checkpoint_sha256": checkpoint_digest(*[member.path for member in members]),
        "version": __version__,
        "flags": flags,
        "candidates": [{**to_dict(candidates[i]), "score": scores[i]} for i in ranking],
    }
    write_json(target, result)
    return result


def read_choice(choice: bool | Mapping[str, Any] | str, classes: int) -> Postprocessing | None:
    """The post-processing that a configuration sets under `postprocess`.

    Args:
        choice: whether to choose on valid; or the arguments of a `Postprocessing` to use as it is.
            A word is neither, but a command line can hold one.
        classes: of the network.

    Returns:
        None where it is to be chosen, or none is wanted.

    Raises:
        InputError: no post-processing, an unknown name, a value out of range, or a threshold for
            several classes.
    """
    if isinstance(choice, bool):
        return None
    if not isinstance(choice, Mapping):
        raise InputError(
            f"postprocess is {choice!r}, expected true, false, or the post-processing itself, such "
            "as {flips: [horizontal]}."
        )
    check_arguments("postprocess", Postprocessing, choice)
    try:
        fixed = Postprocessing(**choice)
    except InputError as error:
        raise InputError(f"postprocess: {error}") from None
    if classes > 1 and fixed.threshold != 0.5:
        raise InputError(
            f"postprocess.threshold is {fixed.threshold:g}, but of {classes} classes the most "
            "probable one counts. Leave it out."
        )
    return fixed


def apply_choice(run: Path, choice: bool | Mapping[str, Any], device: str = "auto") -> None:
    """Do what a configuration asks for under `postprocess`, when its training is finished.

    Args:
        run: see `search_postprocessing`.
        choice: see `read_choice`.
        device: see `search_postprocessing`.

    Raises:
        InputError: see `search_postprocessing` and `read_choice`.
    """
    members = read_members(run)
    fixed = read_choice(choice, members[0].classes)
    if fixed is not None:
        paths = [member.path for member in members]
        content = {
            "postprocessing": to_dict(fixed),
            "metric": "none: set by the configuration",
            "checkpoint_sha256": checkpoint_digest(*paths),
            "version": __version__,
        }
        write_json(RunFolder(run).postprocessing, content)
    elif choice:
        print_search(search_postprocessing(run, device=device))


def choose_flags(
    evaluations: Sequence[Evaluation], postprocessing: Postprocessing, recall: float
) -> tuple[Postprocessing, dict[str, Any] | None]:
    """Choose the confidence below which images are flagged.

    Args:
        evaluations: of each member; they predict with `postprocessing` from then on.
        postprocessing: with all but `flag_confidence`.
        recall: share of the failures to flag.

    Returns:
        The post-processing with `flag_confidence`, which has four decimal places, and what
        `count_flags` says of these images; as it was, and None, where no image fails.
    """
    dice = []
    confidence = []
    for evaluation in evaluations:
        evaluation.postprocessing = postprocessing
        for batch, logits in evaluation.batches():
            for image in evaluation.postprocess(batch["stem"], logits)[1]:
                dice.append(image.row["dice_original"])
                confidence.append(image.row["confidence"])
    bad = postprocessing.failure_dice
    scores = np.nan_to_num(dice, nan=1.0)  # both maps are empty, which is exact
    found = flag_threshold(scores, np.array(confidence), bad, recall)
    if found == -np.inf:
        return postprocessing, None
    # Rounded up, so that the image at the threshold stays flagged.
    threshold = min(1.0, math.ceil(found * 10_000) / 10_000)
    flags = count_flags(scores, np.array(confidence), threshold, bad)
    return replace(postprocessing, flag_confidence=threshold), flags


def list_candidates(flips: Flips, classes: int) -> list[Postprocessing]:
    """Every post-processing to try; thresholds are for one class only."""
    flip_choices = [()] if flips == () else [(), flips]
    thresholds = THRESHOLDS if classes == 1 else (0.5,)
    grid = itertools.product(flip_choices, thresholds, CLEANUPS, (False, True))
    return [
        Postprocessing(flips, threshold, **cleanup, fill_holes=fill_holes)
        for flips, threshold, cleanup, fill_holes in grid
    ]


def try_candidates(
    evaluation: Evaluation,
    candidates: list[Postprocessing],
    fits: dict[Flips, TemperatureFit],
) -> torch.Tensor:
    """Numbers of pixels at original sizes for every candidate and image.

    Args:
        evaluation: of a member.
        candidates: to try.
        fits: to which the images' probabilities are added, by flips.

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
            probs[flips] = class_probs(evaluation.logits(batch["stem"], image, flips))
        for index, stem in enumerate(batch["stem"]):
            squares = {flips: of_batch[index] for flips, of_batch in probs.items()}
            counts.append(list(_count_pixels(evaluation, stem, squares, candidates, fits)))
    return torch.tensor(counts).transpose(0, 1)


def _count_pixels(
    evaluation: Evaluation,
    stem: str,
    squares: Mapping[Flips, np.ndarray],
    candidates: list[Postprocessing],
    fits: dict[Flips, TemperatureFit],
) -> Iterator[list[int]]:
    """The counts of one image for each candidate; `squares` are its probabilities by flips."""
    originals = {}
    for flips, square in squares.items():
        probs, mask = evaluation.original_probs(stem, square)
        originals[flips] = (probs, mask)
        fits.setdefault(flips, TemperatureFit()).add(probs, mask)
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
        arguments = member.data.get("augmentation_args")
        common &= set(seen_flips(member.data["augmentation"], arguments))
    return tuple(name for name in FLIPS if name in common)


def seen_flips(augmentation: str, arguments: dict[str, Any] | None = None) -> Flips:
    """Which flips a network has seen in training; it predicts flips that it has not seen badly.

    Args:
        augmentation: of training, see `ovseg.data.augment.pipelines.build_transform`. Where its
            file is missing, a message says that no flips are tried.
        arguments: of that pipeline.
    """
    try:
        seen = flips_of(build_transform(augmentation, arguments))
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
    if result["flags"] is None:
        print(
            f"No image of {result['split']} has a Dice below {chosen.failure_dice:g}, so no "
            "confidence was chosen to flag pictures by."
        )
    else:
        print(f"Flags: {describe_flags(result['flags'])}")
