"""What is in a dataset tree, and what is wrong with it: faults and copies. Reads everything, writes nothing."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from ovseg.audit.files import (
    BROKEN,
    REMARKS,
    SPLITS,
    Entry,
    Problem,
    examiner,
    list_tree,
    read_manifest,
)
from ovseg.core.errors import InputError
from ovseg.data.pairs import map_with_progress
from ovseg.data.prepare.duplicates import find_near_duplicates, find_turned_copies

COPIES = ("same file", "same pixels", "near-duplicate", "turned copy")


@dataclass(frozen=True)
class Copy:
    """Two images that show the same: `kind` is one of COPIES, `how` says how the second must be moved."""

    kind: str
    first: Entry
    second: Entry
    similarity: float
    how: str = ""

    @property
    def leaks(self) -> bool:
        return self.first.split != self.second.split


@dataclass(frozen=True)
class Audit:
    """All that was found in a tree."""

    root: Path
    entries: list[Entry]
    problems: list[Problem]
    copies: list[Copy]
    exact_only: bool

    @property
    def broken(self) -> list[Problem]:
        return [problem for problem in self.problems if problem.kind in BROKEN]

    @property
    def leaks(self) -> list[Copy]:
        return [copy for copy in self.copies if copy.leaks]

    @property
    def passed(self) -> bool:
        """No copies across splits, and nothing broken."""
        return not self.leaks and not self.broken


def audit_tree(root: Path, mask_threshold: int = 127) -> Audit:
    """Read every picture of `root/{train,valid,test}/{images,masks,categories}`; a fault stops nothing else.

    Args:
        root: dataset folder; `categories` and `manifest.json` are used where they are there.
        mask_threshold: grey values of masks above it are lesion, as in training.

    Raises:
        InputError: the threshold is out of range, or there is no image at all.
    """
    root = Path(root)
    if not 0 <= mask_threshold <= 254:
        raise InputError(f"--mask-threshold is {mask_threshold}, expected 0..254.")
    entries, problems = list_tree(root)
    if not entries:
        raise InputError(
            f"{root} holds no image in train/images, valid/images or test/images. Check --root."
        )
    manifest = read_manifest(root, entries, problems)
    for found in map_with_progress(
        examiner(root, mask_threshold, manifest.get("categories")), entries, "Examining pairs"
    ):
        problems += found
    exact_only = (
        manifest.get("made_by") == "phantoms"
    )  # phantoms share a geometry: strangers look alike
    copies = find_copies([entry for entry in entries if entry.fingerprint], exact_only)
    return Audit(root, entries, problems, copies, exact_only)


def find_copies(entries: Sequence[Entry], exact_only: bool = False) -> list[Copy]:
    """Every two images that show the same, each by its strongest kind: leaks first, then by kind, most similar first.

    Args:
        entries: readable images.
        exact_only: compare file contents and pixels only.
    """
    found: dict[tuple[int, int], tuple] = {}
    for kind, attribute in (("same file", "file_sha256"), ("same pixels", "pixel_sha256")):
        by_hash: dict[str, list[int]] = {}
        for index, entry in enumerate(entries):
            by_hash.setdefault(getattr(entry, attribute), []).append(index)
        for same in by_hash.values():
            for pair in combinations(same, 2):
                found.setdefault(pair, (kind, 1.0))
    if not exact_only:
        prints = [entry.fingerprint for entry in entries]
        for i, j, similarity in find_near_duplicates(prints, [entry.stem for entry in entries]):
            found.setdefault((i, j), ("near-duplicate", similarity))
        for i, j, similarity, how in find_turned_copies(prints):
            found.setdefault((i, j), ("turned copy", similarity, how))
    copies = [Copy(kind, entries[i], entries[j], *rest) for (i, j), (kind, *rest) in found.items()]
    return sorted(
        copies, key=lambda copy: (not copy.leaks, COPIES.index(copy.kind), -copy.similarity)
    )


def summarise(audit: Audit) -> dict[str, Any]:
    """Everything that was found, in plain types, for `audit.json`."""
    splits = {split: [entry for entry in audit.entries if entry.split == split] for split in SPLITS}
    counts = Counter(problem.kind for problem in audit.problems)
    return {
        "made_by": "audit_data",
        "root": audit.root.resolve().name,
        "passed": audit.passed,
        "compared_by": "file contents and pixels only (phantoms)"
        if audit.exact_only
        else list(COPIES),
        "splits": {split: _describe(entries) for split, entries in splits.items()}
        | {"all": _describe(audit.entries)},
        "problem_counts": {kind: counts[kind] for kind in (*BROKEN, *REMARKS)},
        "broken": len(audit.broken),
        "problems": [asdict(problem) for problem in audit.problems],
        "leaks": len(audit.leaks),
        "copy_counts": {
            kind: {
                "across splits": sum(copy.leaks for copy in audit.copies if copy.kind == kind),
                "within a split": sum(not copy.leaks for copy in audit.copies if copy.kind == kind),
            }
            for kind in COPIES
        },
        "copies": [
            {
                "kind": copy.kind,
                "first": copy.first.image,
                "second": copy.second.image,
                "similarity": copy.similarity,
                "how": copy.how,
                "across_splits": copy.leaks,
            }
            for copy in audit.copies
        ],
        "images": [
            {k: v for k, v in vars(entry).items() if k != "fingerprint"} for entry in audit.entries
        ],
    }


def _describe(entries: Sequence[Entry]) -> dict[str, Any]:
    """Counts and distributions of some images."""
    sizes = Counter(f"{entry.width} x {entry.height}" for entry in entries if entry.width)
    return {
        "images": len(entries),
        "usable_pairs": sum(entry.usable for entry in entries),
        "doppler": sum(entry.doppler for entry in entries),
        "empty_masks": sum(entry.lesion == 0 for entry in entries),
        "categories": dict(
            sorted(Counter(entry.category for entry in entries if entry.category).items())
        ),
        "sizes": dict(sizes.most_common()),
        "lesion": _spread([entry.lesion for entry in entries if entry.lesion is not None]),
        "brightness": _spread(
            [entry.brightness for entry in entries if entry.brightness is not None]
        ),
    }


def _spread(values: Sequence[float]) -> dict[str, float] | None:
    if not values:
        return None
    quantiles = np.quantile(values, [0, 0.25, 0.5, 0.75, 1])
    names = ("min", "quarter", "median", "three_quarters", "max")
    return {"mean": float(np.mean(values))} | dict(zip(names, map(float, quantiles), strict=True))
