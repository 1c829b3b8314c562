"""Find faults and copies in a dataset tree, and count what is in it. Nothing is written."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from ovseg.audit.files import (
    BROKEN,
    REMARKS,
    Entry,
    Problem,
    compare_manifest,
    examine,
    judge_masks,
    list_tree,
)
from ovseg.audit.remedies import LEAKS, describe_remedy
from ovseg.core.console import map_with_progress
from ovseg.core.errors import InputError
from ovseg.data.prepare.duplicates import (
    COMPARED_SIZE,
    RESIZED,
    find_near_duplicates,
    find_rotated_copies,
)
from ovseg.data.tree import SPLITS

COPIES = ("same file", "same pixels", "near-duplicate", "rotated copy")  # strongest first


@dataclass(frozen=True)
class Copy:
    """Two images that show the same.

    Attributes:
        kind: one of `COPIES`.
        first: one image.
        second: the other.
        similarity: 1 for the same picture, about 0 for different ones.
        rotation: how the second must be rotated or flipped to be the first; empty for upright
            copies.
    """

    kind: str
    first: Entry
    second: Entry
    similarity: float
    rotation: str = ""

    @property
    def across_splits(self) -> bool:
        """Whether the two are in different splits."""
        return self.first.split != self.second.split


@dataclass(frozen=True)
class Audit:
    """All that was found in a tree.

    Attributes:
        root: dataset folder.
        entries: all images.
        problems: faults (kinds in `BROKEN`, each of which fails the audit) and remarks.
        copies: those across splits first.
        exact_only: whether only file contents and pixels were compared.
        prepared: whether `prepare_data` made the tree.
    """

    root: Path
    entries: list[Entry]
    problems: list[Problem]
    copies: list[Copy]
    exact_only: bool
    prepared: bool

    @property
    def broken(self) -> list[Problem]:
        """The faults, without the remarks."""
        return [problem for problem in self.problems if problem.kind in BROKEN]

    @property
    def leaks(self) -> list[Copy]:
        """The copies across splits."""
        return [copy for copy in self.copies if copy.across_splits]

    @property
    def passed(self) -> bool:
        """No copies across splits, and nothing broken."""
        return not self.leaks and not self.broken


def audit_tree(root: Path, mask_threshold: int = 127, invert_masks: bool = False) -> Audit:
    """Read every picture of `root/{train,valid,test}/{images,masks,categories}`.

    A fault in one file does not stop the audit of the others.

    Args:
        root: dataset folder; `categories` and `manifest.json` are used where they are there.
        mask_threshold: grey values of masks above it are lesion, as in training.
        invert_masks: the lesion is drawn in black, as in training.

    Raises:
        InputError: the threshold is out of range, or there is no image at all.
    """
    root = Path(root)
    if not 0 <= mask_threshold <= 254:
        raise InputError(f"--mask_threshold is {mask_threshold}, expected 0..254.")
    entries, problems = list_tree(root)
    if not entries:
        raise InputError(
            f"{root} holds no image in train/images, valid/images or test/images. Check the path."
        )
    manifest, manifest_problems = compare_manifest(root, entries)
    problems += manifest_problems

    examine_entry = partial(
        examine,
        root,
        threshold=mask_threshold,
        categories=manifest.get("categories"),
        invert=invert_masks,
    )
    # Fills in each entry too.
    for found in map_with_progress(examine_entry, entries, "Examining pairs"):
        problems += found
    problems += judge_masks(entries, mask_threshold)

    # Phantoms share a geometry: different ones look alike, so near-duplicates are not looked for.
    exact_only = manifest.get("made_by") == "phantoms"
    # The split was made of the original images, and is not judged by what resizing changed.
    prepared = manifest.get("made_by") == "prepare_data"
    resized = prepared and manifest.get("size") != COMPARED_SIZE
    copies = find_copies(entries, exact_only, margin=RESIZED if resized else 0)
    return Audit(root, entries, problems, copies, exact_only, prepared)


def find_copies(
    entries: Sequence[Entry], exact_only: bool = False, margin: float = 0
) -> list[Copy]:
    """Every two images that show the same, each pair with its strongest kind.

    Args:
        entries: images; those that could not be read are left out.
        exact_only: compare file contents and pixels only.
        margin: see `find_near_duplicates`.

    Returns:
        Those across splits first, then by kind, most similar first.
    """
    readable = []
    fingerprints = []
    for entry in entries:
        if entry.fingerprint is not None:
            readable.append(entry)
            fingerprints.append(entry.fingerprint)

    # Indices of two images -> kind, similarity and rotation. The strongest kind is looked for
    # first, and the first one that is found is kept.
    found: dict[tuple[int, int], tuple[str, float, str]] = {}
    for pair in _equal_pairs([entry.file_sha256 for entry in readable]):
        found.setdefault(pair, ("same file", 1.0, ""))
    for pair in _equal_pairs([entry.pixel_sha256 for entry in readable]):
        found.setdefault(pair, ("same pixels", 1.0, ""))
    if not exact_only:
        stems = [entry.stem for entry in readable]
        for i, j, similarity in find_near_duplicates(fingerprints, stems, margin):
            found.setdefault((i, j), ("near-duplicate", similarity, ""))
        for i, j, similarity, rotation in find_rotated_copies(fingerprints):
            found.setdefault((i, j), ("rotated copy", similarity, rotation))

    copies = []
    for (i, j), (kind, similarity, rotation) in found.items():
        copies.append(Copy(kind, readable[i], readable[j], similarity, rotation))
    copies.sort(
        key=lambda copy: (not copy.across_splits, COPIES.index(copy.kind), -copy.similarity)
    )
    return copies


def _equal_pairs(values: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Indices of every two equal values."""
    indices = defaultdict(list)
    for index, value in enumerate(values):
        indices[value].append(index)
    for equal in indices.values():
        yield from combinations(equal, 2)


def summarise(audit: Audit) -> dict[str, Any]:
    """Everything that was found, in plain types, for `audit.json`."""
    splits = {}
    for split in SPLITS:
        splits[split] = _summarise([entry for entry in audit.entries if entry.split == split])
    splits["all"] = _summarise(audit.entries)

    compared_by: str | list[str] = list(COPIES)
    if audit.exact_only:
        compared_by = "file contents and pixels only (phantoms)"
    problem_counts = Counter(problem.kind for problem in audit.problems)
    kinds = list(problem_counts)
    if audit.leaks:
        kinds.append(LEAKS)
    remedies = {kind: describe_remedy(kind, audit.root, audit.prepared) for kind in kinds}
    return {
        "made_by": "audit_data",
        "root": audit.root.resolve().name,
        "passed": audit.passed,
        "compared_by": compared_by,
        "splits": splits,
        "problem_counts": {kind: problem_counts[kind] for kind in (*BROKEN, *REMARKS)},
        "remedies": {kind: remedy for kind, remedy in remedies.items() if remedy},
        "broken": len(audit.broken),
        "problems": [asdict(problem) for problem in audit.problems],
        "leaks": len(audit.leaks),
        "copy_counts": _count_copies(audit.copies),
        "copies": [_copy_as_dict(copy) for copy in audit.copies],
        "images": [_entry_as_dict(entry) for entry in audit.entries],
    }


def _count_copies(copies: Sequence[Copy]) -> dict[str, dict[str, int]]:
    counts = {kind: {"across splits": 0, "within a split": 0} for kind in COPIES}
    for copy in copies:
        where = "across splits" if copy.across_splits else "within a split"
        counts[copy.kind][where] += 1
    return counts


def _copy_as_dict(copy: Copy) -> dict[str, Any]:
    return {
        "kind": copy.kind,
        "first": copy.first.image,
        "second": copy.second.image,
        "similarity": copy.similarity,
        "rotation": copy.rotation,
        "across_splits": copy.across_splits,
    }


def _entry_as_dict(entry: Entry) -> dict[str, Any]:
    content = dict(vars(entry))
    del content["fingerprint"]
    del content["mask_facts"]
    return content


def _summarise(entries: Sequence[Entry]) -> dict[str, Any]:
    """Counts and distributions of some images."""
    sizes = Counter(f"{entry.width} x {entry.height}" for entry in entries if entry.width)
    categories = Counter(entry.category for entry in entries if entry.category)
    lesions = [entry.lesion for entry in entries if entry.lesion is not None]
    brightness = [entry.brightness for entry in entries if entry.brightness is not None]
    return {
        "images": len(entries),
        "usable_pairs": sum(entry.usable for entry in entries),
        "doppler": sum(entry.doppler for entry in entries),
        "empty_masks": lesions.count(0),
        "categories": dict(sorted(categories.items())),
        "sizes": dict(sizes.most_common()),
        "lesion": _spread(lesions),
        "brightness": _spread(brightness),
    }


def _spread(values: Sequence[float]) -> dict[str, float] | None:
    """Mean and quartiles; None where there are no values."""
    if not values:
        return None
    names = ("min", "quarter", "median", "three_quarters", "max")
    quantiles = np.quantile(values, [0, 0.25, 0.5, 0.75, 1])
    spread = {"mean": float(np.mean(values))}
    for name, quantile in zip(names, quantiles, strict=True):
        spread[name] = float(quantile)
    return spread
