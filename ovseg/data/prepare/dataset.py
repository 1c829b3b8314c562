"""Make a dataset of squares, masks and category maps from a download.

`ovseg.data.prepare.otu2d` reads its files; the split, the near-duplicates and the writing are here.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ovseg.core.console import map_with_progress
from ovseg.core.errors import InputError, first_five
from ovseg.core.files import (
    atomic_dir,
    check_output_dir,
    content_digest,
    file_digest,
    write_image,
    write_json,
)
from ovseg.core.registry import choose
from ovseg.data.geometry import FITS, fit_box, place
from ovseg.data.manifest import FILE_NAME, read_manifest
from ovseg.data.prepare.duplicates import (
    THRESHOLDS,
    Fingerprint,
    NearDuplicate,
    find_near_duplicates,
    fingerprint,
    group_images,
)
from ovseg.data.prepare.otu2d import CATEGORIES, Source, find_sources, read_pair
from ovseg.data.prepare.splits import (
    FRACTIONS,
    check_leakage,
    deal_groups,
    read_official,
    read_split_file,
    stratify,
)

KINDS = ("images", "masks", "categories")  # folders of a split
SPLITTERS = {
    "groups": "80 : 10 : 10 by near-duplicate groups",
    "official": "train.txt and val.txt of the download",
}
MAX_FOLDS = 20
SMALLEST_COMPARED = 128  # pixels; different images that are shrunk below it look alike

Name = TypeVar("Name", str, int)  # of a split or a fold


@dataclass(frozen=True)
class Case:
    """What the split needs to know of a usable pair.

    Attributes:
        source: its files.
        height: of the image, pixels.
        width: of the image, pixels.
        category: id, 1..8, or 0 where the annotation is empty.
        lesion: share of the image that is lesion, 0..1.
        source_fingerprint: of the image as it is.
        written_fingerprint: of the image as it is written, which is what an audit sees; resizing
            changes a similarity by up to 0.02. Where squares are smaller than `SMALLEST_COMPARED`
            it is that of the image as it is.
    """

    source: Source
    height: int
    width: int
    category: int
    lesion: float
    source_fingerprint: Fingerprint
    written_fingerprint: Fingerprint


@dataclass(frozen=True)
class Assignment:
    """Where a case belongs: its split, its group of near-duplicates, and its fold, if any."""

    split: str
    group: int
    fold: int | None


def prepare_dataset(
    source: Path,
    output: Path,
    size: int = 512,
    fit: str = "letterbox",
    split: str = "groups",
    split_file: Path | None = None,
    folds: int = 0,
    allow_leakage: bool = False,
    seed: int = 42,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write `{train,valid,test}/{images,masks,categories}/<stem>.png` and `manifest.json`.

    Images are RGB (area when shrinking, cubic when enlarging), masks 0/255, category maps 0
    (background) and 1..8 (nearest neighbour). A file that can't be used is named in the manifest's
    `failures`; the others are written.

    Args:
        source: folder with `images/N.JPG` and `annotations/N.PNG`; `N_binary.PNG`, `train.txt`,
            `val.txt` if present.
        output: folder to make; it appears when it is complete. Called again with the same source
            and settings, this changes nothing and returns the manifest.
        size: side of the squares, pixels, 16..8192.
        fit: see `ovseg.data.geometry.fit_box`.
        split: `groups` divides groups of near-duplicates 80 : 10 : 10, stratified by category and
            lesion size; `official` takes val.txt as test and an eighth of train.txt, by groups, as
            valid.
        split_file: a split to use instead, see `ovseg.data.prepare.splits.read_split_file`.
        folds: also divide train and valid together into so many folds, by groups, for
            cross-validation: each entry's `fold` is 0..folds-1, or null for a test image; 0 makes
            none.
        allow_leakage: accept near-duplicates across splits; the manifest's `leakage` and every
            result report them.
        seed: of the split and the folds.
        overwrite: replace an earlier dataset.

    Returns:
        The manifest.

    Raises:
        InputError: the source is not that layout, a setting is out of range, near-duplicates are in
            two splits, a split or fold would be empty, no pair is usable, or output exists.
    """
    source = Path(source)
    output = Path(output)
    _check_settings(size, fit, split, split_file, folds, seed)

    sources, unmatched = find_sources(source)
    given_split = _read_given_split(source, [item.stem for item in sources], split, split_file)
    settings = {
        "size": size,
        "fit": fit,
        "split": "file" if split_file else split,
        "seed": seed,
        "folds": folds,
        "allow_leakage": allow_leakage,
        "listed_sha256": None if given_split is None else content_digest(given_split),
        "source_files": _describe_files(sources),
        "near_duplicates": {str(reach): threshold for reach, threshold in THRESHOLDS.items()},
    }
    if not overwrite:
        earlier = _read_finished(output)
        if earlier is not None and _has_settings(earlier, settings):
            print(f"{output} was made from these files with these settings: it is kept as it is.")
            return earlier

    check_output_dir(output, overwrite, marker=FILE_NAME)
    cases, failures = _examine_all(source, sources, size, fit)
    stems = [case.source.stem for case in cases]
    duplicates = _find_duplicates(cases, stems)
    groups = group_images(len(cases), duplicates).tolist()
    splits, fold_of = _assign(cases, groups, given_split, split, folds, seed)
    leaks = check_leakage(duplicates, splits, stems, allow_leakage)
    with atomic_dir(output, overwrite, FILE_NAME, inputs=[source]) as folder:

        def write(planned: tuple[Case, Assignment]) -> dict[str, Any]:
            case, assignment = planned
            return _write_case(folder, case, assignment, size, fit)

        planned = []
        for index, case in enumerate(cases):
            assignment = Assignment(splits[index], groups[index], fold_of.get(index))
            planned.append((case, assignment))
        items = map_with_progress(write, planned, "Writing pairs")
        manifest = {
            "made_by": "prepare_data",
            **settings,
            "leakage": bool(leaks),
            "leaking_pairs": leaks,
            "categories": list(CATEGORIES.values()),
            "failures": unmatched + failures,
            "items": items,
        }
        write_json(folder / FILE_NAME, manifest)
    return manifest


def _check_settings(
    size: int, fit: str, split: str, split_file: Path | None, folds: int, seed: int
) -> None:
    if not 16 <= size <= 8192:
        raise InputError(f"--size is {size}, expected 16..8192.")
    if not 0 <= seed < 2**32:
        raise InputError(f"--seed is {seed}, expected 0..{2**32 - 1}.")
    if folds and not 2 <= folds <= MAX_FOLDS:
        raise InputError(f"--folds is {folds}, expected 2..{MAX_FOLDS}, or 0 for none.")
    choose("fit", fit, FITS)
    choose("split", split, SPLITTERS)
    if split_file and split != "groups":
        raise InputError(
            f"--split {split} and --split_file {split_file} are two splits. Leave out one of them."
        )


def _read_given_split(
    source: Path, stems: list[str], split: str, split_file: Path | None
) -> dict[str, str] | None:
    """The split that a file gives, stem -> split, or None where groups make the split."""
    if split_file:
        return read_split_file(split_file, stems)
    if split == "official":
        return read_official(source, stems)
    return None


def _examine_all(
    source: Path, sources: list[Source], size: int, fit: str
) -> tuple[list[Case], list[str]]:
    """The usable pairs, and why the others are not.

    Raises:
        InputError: none is usable.
    """

    def examine(item: Source) -> Case | str:
        try:
            return _examine(item, size, fit)
        except InputError as error:
            return str(error)

    results = map_with_progress(examine, sources, "Examining pairs")
    cases = [result for result in results if isinstance(result, Case)]
    failures = [result for result in results if isinstance(result, str)]
    if not cases:
        raise InputError(
            f"None of the {len(sources)} pairs in {source} can be used: {first_five(failures)}"
        )
    return cases, failures


def _examine(source: Source, size: int, fit: str) -> Case:
    """A pair as the split sees it; raises as `read_pair`."""
    image, mask, _, category = read_pair(source)
    height, width = mask.shape
    written = image
    if size >= SMALLEST_COMPARED:
        written = place(image, size, fit)
    return Case(
        source,
        height,
        width,
        category,
        lesion=float(mask.mean()),
        source_fingerprint=fingerprint(image),
        written_fingerprint=fingerprint(written),
    )


def _assign(
    cases: Sequence[Case],
    groups: Sequence[int],
    given_split: Mapping[str, str] | None,
    split: str,
    folds: int,
    seed: int,
) -> tuple[list[str], dict[int, int]]:
    """The split of every case, and the fold of those that are not in test, by their index.

    Args:
        cases: the usable pairs.
        groups: of near-duplicates, a number for each case.
        given_split: see `_read_given_split`.
        split: see `prepare_dataset`.
        folds: see `prepare_dataset`.
        seed: of the split and the folds.

    Raises:
        InputError: a split or fold would be empty.
    """
    strata = stratify([case.category for case in cases], [case.lesion for case in cases])
    everyone = range(len(cases))
    if given_split is None:
        split_of = _deal(everyone, groups, strata, FRACTIONS, seed)
    else:
        split_of = {index: given_split[cases[index].source.stem] for index in everyone}
        if split == "official":  # its train is divided, its val.txt is the test split
            in_train = [index for index in everyone if split_of[index] == "train"]
            split_of |= _deal(in_train, groups, strata, {"train": 7 / 8, "valid": 1 / 8}, seed)

    fold_of: dict[int, int] = {}
    if folds:
        in_folds = [index for index in everyone if split_of[index] != "test"]
        fold_of = _deal(in_folds, groups, strata, dict.fromkeys(range(folds), 1 / folds), seed)
    return [split_of[index] for index in everyone], fold_of


def _deal(
    indices: Sequence[int],
    groups: Sequence[int],
    strata: Sequence[tuple[int, int]],
    fractions: Mapping[Name, float],
    seed: int,
) -> dict[int, Name]:
    """Split or fold of the cases with these indices, see `deal_groups`.

    Raises:
        InputError: one would be empty.
    """
    groups_of_indices = [groups[index] for index in indices]
    strata_of_indices = [strata[index] for index in indices]
    dealt = deal_groups(groups_of_indices, strata_of_indices, fractions, seed)
    empty = [name for name in fractions if name not in dealt]
    if empty:
        raise InputError(
            f"{len(indices)} images in {len(set(groups_of_indices))} groups of near-duplicates "
            f"leave split or fold {first_five(empty)} empty. Add images, or ask for fewer folds."
        )
    return dict(zip(indices, dealt, strict=True))


def _find_duplicates(cases: Sequence[Case], stems: Sequence[str]) -> list[NearDuplicate]:
    """The near-duplicates among the images as they are or as they are written, in order.

    The similarity of a pair that is found in both is that of the images as they are written.
    """
    of_sources = [case.source_fingerprint for case in cases]
    as_written = [case.written_fingerprint for case in cases]
    found: dict[tuple[int, int], NearDuplicate] = {}
    for fingerprints in (of_sources, as_written):
        for duplicate in find_near_duplicates(fingerprints, stems):
            found[duplicate[:2]] = duplicate
    return sorted(found.values())


def _write_case(
    folder: Path, case: Case, assignment: Assignment, size: int, fit: str
) -> dict[str, Any]:
    """Write the three pictures of a case; returns its entry in the manifest."""
    image, mask, categories, category = read_pair(case.source)
    pictures = (image, mask * np.uint8(255), categories)
    for kind, picture in zip(KINDS, pictures, strict=True):
        path = folder / assignment.split / kind / f"{case.source.stem}.png"
        write_image(path, place(picture, size, fit))
    return {
        "stem": case.source.stem,
        **asdict(assignment),
        "source": f"images/{case.source.image_path.name}",
        "height": case.height,
        "width": case.width,
        "box": asdict(fit_box(case.height, case.width, size, fit)),
        "category": category,
    }


def _describe_files(sources: Iterable[Source]) -> dict[str, int | str]:
    """Number, size and digest of the source files, which change when a file does."""
    paths = []
    for source in sources:
        for path in (source.image_path, source.annotation_path, source.binary_path):
            if path is not None:
                paths.append(path)
    digests = map_with_progress(file_digest, paths, "Reading files")
    size = sum(path.stat().st_size for path in paths)
    return {"count": len(paths), "bytes": size, "sha256": content_digest(digests)}


def _read_finished(output: Path) -> dict[str, Any] | None:
    """The manifest of an earlier dataset whose files are all there, or None."""
    try:
        manifest = read_manifest(output)
    except InputError:
        return None
    if "items" not in manifest:
        return None
    for item in manifest["items"]:
        for kind in KINDS:
            if not (output / item["split"] / kind / f"{item['stem']}.png").is_file():
                return None
    return manifest


def _has_settings(manifest: Mapping[str, Any], settings: Mapping[str, Any]) -> bool:
    """Whether a dataset was made with these settings; an older manifest may lack some."""
    return all(name in manifest and manifest[name] == settings[name] for name in settings)
