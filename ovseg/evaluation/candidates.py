"""What `ovseg compare` compares: runs, and folders of masks of any tool, each with a short name."""

import re
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd

from ovseg.core.console import map_with_progress
from ovseg.core.errors import InputError, first_five
from ovseg.core.runs import RunFolder
from ovseg.data.boxes import Box, cut
from ovseg.data.datamodule import OvarianTumorDataModule
from ovseg.data.geometry import resize_labels
from ovseg.data.manifest import image_groups, prepared_items
from ovseg.data.masks import (
    MaskFacts,
    alpha_problem,
    are_inverted,
    binarise,
    describe_oddities,
    mask_facts,
    mask_problem,
    refuse_implausible,
)
from ovseg.data.original import OriginalSplit
from ovseg.data.pairs import Pair, list_images, verify_pairs
from ovseg.data.pictures import is_lossy, list_pictures, open_picture, read_image
from ovseg.evaluation.cases import score_case
from ovseg.evaluation.evaluate import Evaluation

MASK_THRESHOLD = 127  # of masks, where neither the user nor a training says another
# Last parts of a path that say nothing without the part before.
NAMELESS = re.compile(r"version_\d+|checkpoints|.*\.ckpt")
STEM = "stem"  # the column of the images in the table, so no candidate's name


class Candidate(Protocol):
    """What is compared.

    Attributes:
        notes: lines on what was done to its masks; complete once it was scored.
    """

    notes: list[str]

    def score(self) -> pd.DataFrame:
        """A row an image: `stem` and the columns of `score_case`."""

    def labels(self, stem: str) -> np.ndarray:
        """Predicted labels at the original size, uint8 (height, width)."""


class RunCandidate:
    """A run.

    Args:
        evaluation: of it.
    """

    def __init__(self, evaluation: Evaluation):
        self.evaluation = evaluation
        self.notes: list[str] = []
        if evaluation.trained_on:
            self.notes.append(f"{evaluation.paths[0]} was trained on these images.")
        if evaluation.dataset_changed:
            self.notes.append(
                f"{evaluation.paths[0]} may have been trained on these images: the dataset was "
                "made anew since."
            )

    def score(self) -> pd.DataFrame:
        return self.evaluation.run()[0]

    def labels(self, stem: str) -> np.ndarray:
        return self.evaluation.postprocessing.labels(self.evaluation.predict_again(stem))


@dataclass(frozen=True)
class ScoredMask:
    """One mask of a `MaskCandidate`.

    Attributes:
        row: its stem, and see `score_case`.
        facts: of its grey values.
        size: how it was brought to the original size, a key of `SIZES`.
        shapes: own and original, `256 x 256, not 800 x 600`.
    """

    row: dict[str, Any]
    facts: MaskFacts
    size: str
    shapes: str


# How a mask is brought to its picture's original size -> what is said of it.
SIZES = {
    "as it is": "",
    "prepared": "have the size of the dataset's prepared pictures, so they are cut and resized as "
    "the reference masks are",
    "stretched": "have another size than the original picture, so they are stretched to it by "
    "nearest neighbour",
}


class MaskCandidate:
    """A folder of masks of any tool.

    Colours count by their brightest channel (the baseline's masks are green).

    Args:
        folder: of the masks.
        paths: stem -> mask, for every image of `originals`.
        originals: the images that are compared.
        threshold: grey values above it are lesion.
    """

    def __init__(
        self, folder: Path, paths: dict[str, Path], originals: OriginalSplit, threshold: int
    ):
        self.folder = folder
        self.paths = paths
        self.originals = originals
        self.threshold = threshold
        self.notes: list[str] = []

    def score(self) -> pd.DataFrame:
        """See `Candidate`.

        Raises:
            InputError: files that are no masks, such as photographs or probability maps; or masks
                that can't all be meant, see `ovseg.data.masks.refuse_implausible`.
        """
        stems = list(self.originals.pairs)
        results = map_with_progress(self._score, stems, f"Scoring {self.folder}")
        self._refuse(dict(zip(stems, results, strict=True)))
        scored = [result for result in results if isinstance(result, ScoredMask)]
        facts = [mask.facts for mask in scored]
        name = str(self.folder)
        refuse_implausible(name, facts, self.threshold, needs_lesion=False)
        # Inverted masks are told below: the setting that is the remedy for a dataset is none here.
        self.notes = describe_oddities(name, stems, facts, self.threshold, invert=True)
        if are_inverted(facts):
            self.notes.append(
                f"Nearly all masks in {name} are white at their corners. If their lesion is drawn "
                "in black, invert them."
            )
        for size, text in SIZES.items():
            chosen = [mask for mask in scored if mask.size == size]
            if chosen and text:
                self.notes.append(_describe_size(name, len(scored), chosen, text))
        return pd.DataFrame([mask.row for mask in scored])

    def labels(self, stem: str) -> np.ndarray:
        height, width = self.originals.mask(stem).shape
        return self._fit(stem, self._read(stem)[0], height, width)[0]

    def _score(self, stem: str) -> ScoredMask | str:
        """A mask's scores, or why it is none."""
        mask = self.originals.mask(stem)
        height, width = mask.shape
        try:
            own, facts = self._read(stem)
        except InputError as error:
            return str(error)
        labels, size = self._fit(stem, own, height, width)
        row = {STEM: stem, **score_case(labels.astype(float), labels, mask)}
        shapes = f"{stem}: {own.shape[1]} x {own.shape[0]}, not {width} x {height}"
        return ScoredMask(row, facts, size, shapes)

    def _refuse(self, results: dict[str, ScoredMask | str]) -> None:
        problems = {stem: result for stem, result in results.items() if isinstance(result, str)}
        if not problems:
            return
        first = next(iter(problems.values()))
        if len(problems) == 1:
            raise InputError(first)
        raise InputError(
            f"{len(problems)} of {len(results)} masks in {self.folder} can't be used: "
            f"{first_five(problems)}. The first: {first}"
        )

    def _read(self, stem: str) -> tuple[np.ndarray, MaskFacts]:
        """A mask at its own size, uint8 (h, w) of 0 and 1, and what its grey values tell.

        Raises:
            InputError: unreadable, or no mask.
        """
        path = self.paths[stem]
        picture = open_picture(path)
        grey = np.array(picture.convert("RGB")).max(axis=2)
        lossy = is_lossy(picture)
        problem = alpha_problem(picture, grey) or mask_problem(grey, self.threshold, lossy)
        if problem:
            raise InputError(f"{path} {problem}")
        facts = mask_facts(grey, self.threshold, invert=False, lossy=lossy)
        return binarise(grey, self.threshold), facts

    def _fit(
        self, stem: str, labels: np.ndarray, height: int, width: int
    ) -> tuple[np.ndarray, str]:
        """Labels at the original size, and how they were brought to it, a key of `SIZES`."""
        if labels.shape == (height, width):
            return labels, "as it is"
        item = self.originals.items.get(stem)
        if item is not None:
            prepared = read_image(self.originals.pairs[stem].image_path)
            if labels.shape == prepared.shape[:2]:
                inside = cut(labels, Box(**item["box"]))
                return resize_labels(inside, height, width), "prepared"
        return resize_labels(labels, height, width), "stretched"


def _describe_size(folder: str, count: int, chosen: Sequence[ScoredMask], text: str) -> str:
    return f"{len(chosen)} of {count} masks in {folder} {text} ({chosen[0].shapes})."


@dataclass(frozen=True)
class CandidateSet:
    """Candidates, and the images that they are compared on.

    Attributes:
        by_name: the candidates, in the order in which they were named.
        originals: the images; without a dataset a reference mask stands for its picture.
        groups: stem -> group of images that are not independent; empty where none are known.
        references: what the reference is, in words.
        left_out: stems of images of the reference that are not compared.
        leakage: whether near-duplicates are in two splits of the dataset.
    """

    by_name: dict[str, Candidate]
    originals: OriginalSplit
    groups: dict[str, int | str]
    references: str
    left_out: list[str]
    leakage: bool


def open_candidates(
    paths: dict[str, Path],
    split: str,
    data: Path | None,
    masks: Path | None,
    common: bool,
    mask_threshold: int | None,
    device: str,
) -> CandidateSet:
    """Open the candidates and what they are compared with; see `ovseg.evaluation.compare`.

    Args:
        paths: name -> run or folder of masks.
        split: of the dataset.
        data: dataset; None for that of the first run.
        masks: folder of reference masks, instead of a dataset.
        common: leave out images that a folder has no mask of.
        mask_threshold: grey values of all masks above it are lesion; None is that of training for
            a run's dataset, and `MASK_THRESHOLD` for all else.
        device: see `ovseg.core.device.choose_device`.

    Raises:
        InputError: what a run, folder or dataset lacks, or images without a mask.
    """
    folders = {name: path for name, path in paths.items() if _is_mask_folder(path)}
    runs = {name: path for name, path in paths.items() if name not in folders}
    threshold = MASK_THRESHOLD if mask_threshold is None else mask_threshold

    evaluations: dict[str, Evaluation] = {}
    groups: dict[str, int | str] = {}
    leakage = False
    if masks is not None:
        _check_alone(masks, data, runs)
        originals = _read_references(masks, threshold)
        references = str(masks)
    else:
        root = data
        for name, path in runs.items():
            evaluations[name] = Evaluation(
                path, split, root, device=device, mask_threshold=mask_threshold
            )
            root = root or evaluations[name].datamodule.root
        if root is None:
            raise InputError(
                "Folders of masks alone don't tell what to compare with. Add --data DATASET, or "
                "--masks FOLDER of reference masks."
            )
        originals, leakage = _read_split(evaluations, root, split, threshold)
        groups = image_groups(root)
        references = f"{split} of {root}"

    listed = {name: list_images(path) for name, path in folders.items()}
    known: dict[str, Collection[str]] = dict(listed)
    lacks = dict.fromkeys(listed, "have no mask in")
    for name, evaluation in evaluations.items():
        known[name] = evaluation.originals.pairs
        lacks[name] = f"are not in the {split} images of"
    left_out = _find_missing(paths, known, lacks, originals, common)
    pairs = {stem: pair for stem, pair in originals.pairs.items() if stem not in left_out}
    originals = replace(originals, pairs=pairs)
    candidates: dict[str, Candidate] = {}
    for name, path in paths.items():
        if name in folders:
            candidates[name] = MaskCandidate(path, listed[name], originals, threshold)
        else:
            candidates[name] = RunCandidate(evaluations[name])
    return CandidateSet(candidates, originals, groups, references, left_out, leakage)


def _is_mask_folder(path: Path) -> bool:
    """Whether what a user names is a folder with pictures in it, and no run.

    Raises:
        InputError: a folder that is neither.
    """
    run = RunFolder(path)
    if not path.is_dir() or run.checkpoints.is_dir() or run.ensemble.is_file():
        return False
    if list_pictures(path):
        return True
    raise InputError(
        f"{path} is no run (it has no checkpoints/), and no mask lies in it. Name a run folder "
        "such as runs/unet/version_0, or the folder that holds the masks themselves."
    )


def _check_alone(masks: Path, data: Path | None, runs: dict[str, Path]) -> None:
    """Refuse a folder of reference masks beside what needs or is a dataset."""
    if data is not None:
        raise InputError(
            f"--data {data} and --masks {masks} both say what to compare with. Leave one out."
        )
    if runs:
        raise InputError(
            f"{first_five(runs)}: a run needs pictures, and --masks {masks} holds masks alone. "
            "Name the dataset with --data instead."
        )


def _read_references(folder: Path, threshold: int) -> OriginalSplit:
    """A folder of reference masks, of which each stands for its picture too.

    Raises:
        InputError: files that are no masks, or can't all be meant.
    """
    pairs = {stem: Pair(stem, path, path) for stem, path in list_images(folder).items()}
    facts = verify_pairs(list(pairs.values()), threshold)
    refuse_implausible(str(folder), facts, threshold, needs_lesion=False)
    return OriginalSplit(pairs, items={}, mask_threshold=threshold)


def _read_split(
    evaluations: dict[str, Evaluation], root: Path, split: str, threshold: int
) -> tuple[OriginalSplit, bool]:
    """The images of a split, of all runs or of the dataset, and whether the dataset has leakage."""
    if evaluations:
        pairs = {}
        for evaluation in evaluations.values():
            pairs.update(evaluation.originals.pairs)
        first = next(iter(evaluations.values()))
        leakage = any(each.datamodule.leakage for each in evaluations.values())
        return replace(first.originals, pairs=pairs), leakage
    module = OvarianTumorDataModule(str(root), mask_threshold=threshold)
    module.verify([split])
    pairs = {pair.stem: pair for pair in module.pairs(split)}
    return OriginalSplit(pairs, prepared_items(root), threshold), module.leakage


def _find_missing(
    paths: dict[str, Path],
    known: dict[str, Collection[str]],
    lacks: dict[str, str],
    originals: OriginalSplit,
    common: bool,
) -> list[str]:
    """Stems of images that a folder has no mask of, or that are not in a run's split.

    Args:
        paths: name -> folder of masks or run.
        known: name -> stems of its masks or images.
        lacks: name -> what is said of an image that it does not have.
        originals: all images.
        common: whether they may be left out.

    Raises:
        InputError: there are such images and they may not, or no image is left.
    """
    count = len(originals.pairs)
    problems = []
    missing = set()
    for name, stems in known.items():
        lacking = [stem for stem in originals.pairs if stem not in stems]
        missing.update(lacking)
        if lacking:
            text = f"{len(lacking)} of {count} images {lacks[name]} {paths[name]}: "
            problems.append(f"{text}{first_five(lacking)}.")
    if len(missing) == count:
        named = [next(iter(stems)) for stems in known.values() if stems]
        raise InputError(
            f"{' '.join(problems)} So none is left to compare. Name each mask as its image, and "
            f"runs of the same split; there are images or masks such as {first_five(named)}."
        )
    if missing and not common:
        raise InputError(
            f"{' '.join(problems)} Add them, or compare the other {count - len(missing)} "
            "images alone with --common."
        )
    return [stem for stem in originals.pairs if stem in missing]


def name_candidates(given: Sequence[str | Path]) -> dict[str, Path]:
    """A short name for each candidate, and its path.

    Args:
        given: paths, or `NAME=PATH`. Without a name it is as many of the last parts of the path as
            tell it from the others; last parts that are the same of all are left out.

    Raises:
        InputError: fewer than two, a path twice, or a name twice.
    """
    if len(given) < 2:
        raise InputError(f"{len(given)} run to compare, expected two or more.")
    names = []
    paths = []
    for text in map(str, given):
        name, equals, path = text.partition("=")
        if not equals or Path(text).exists():
            name = ""
            path = text
        names.append(name)
        paths.append(Path(path))

    resolved = [path.resolve() for path in paths]
    repeated = [path for path, count in Counter(resolved).items() if count > 1]
    if repeated:
        raise InputError(f"{first_five(repeated)} is named twice. Name each run or folder once.")
    shortened = _shorten(resolved)
    chosen = [name or short for name, short in zip(names, shortened, strict=True)]
    taken = [name for name, count in Counter(chosen).items() if count > 1 or name == STEM]
    if taken:
        raise InputError(
            f"{first_five(taken)} can't be the name of a candidate: each needs its own, and "
            f"{STEM} is a column of the table. Give another one: --runs NAME=PATH."
        )
    return dict(zip(chosen, paths, strict=True))


def _shorten(paths: Sequence[Path]) -> list[str]:
    """The last parts of different paths that tell them apart."""
    parts = [list(path.parts) for path in paths]
    while len({of_path[-1] for of_path in parts}) == 1:
        for of_path in parts:
            of_path.pop()
    count = 1
    names = [_ending(of_path, count) for of_path in parts]
    while len(set(names)) < len(names):
        count += 1
        names = [_ending(of_path, count) for of_path in parts]
    return names


def _ending(parts: Sequence[str], count: int) -> str:
    """The last `count` parts of a path, and more while the first of them says nothing alone."""
    while count < len(parts) and NAMELESS.fullmatch(parts[-count]):
        count += 1
    return "/".join(parts[-count:])
