"""Make a dataset of squares, masks and category maps from a dataset of any usual layout.

`ovseg.data.prepare.layouts` finds its images; the split, the near-duplicates and the writing are
here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import cv2
import numpy as np
from msgspec import Struct

from ovseg.core.console import map_with_progress
from ovseg.core.errors import InputError, first_five, join_problems
from ovseg.core.files import (
    atomic_dir,
    check_output_dir,
    content_digest,
    file_digest,
    refuse_nested,
    write_image,
    write_json,
)
from ovseg.core.registry import choose
from ovseg.core.schema import find_problem
from ovseg.data.boxes import FITS, fit_box
from ovseg.data.geometry import place
from ovseg.data.manifest import FILE_NAME, read_manifest
from ovseg.data.masks import WHITE_CORNERS_SHARE, has_white_corners
from ovseg.data.pictures import UPRIGHT, read_image_and_orientation
from ovseg.data.prepare.duplicates import (
    COMPARED_SIZE,
    THRESHOLDS,
    Fingerprint,
    NearDuplicate,
    find_near_duplicates,
    fingerprint,
    group_images,
)
from ovseg.data.prepare.groups import group_by_folders, pair_patients, read_groups
from ovseg.data.prepare.layouts import find_dataset
from ovseg.data.prepare.sources import (
    UNMATCHED,
    Found,
    Labels,
    Reading,
    Source,
    list_unused,
    path_in,
    settle_unmatched,
)
from ovseg.data.prepare.splits import (
    DEFAULT_FRACTIONS,
    OFFICIAL_LISTS,
    check_leakage,
    deal_groups,
    read_fractions,
    read_official,
    read_own_split,
    read_split_file,
    stratify,
)

KINDS = ("images", "masks", "categories")  # folders of a split
SPLITTERS = {
    "auto": "the dataset's own folders of train and test, or else groups",
    "groups": "by groups of near-duplicates, as --fractions says",
    "official": "the dataset's own folders, or train.txt and val.txt of OTU_2d",
}
MAX_FOLDS = 20
# Settings of a manifest that are no options, in words.
SETTING_NAMES = {
    "listed_sha256": "the listed split",
    "source_files": "the source's files",
    "near_duplicates": "limits for near-duplicates",
}
SMALLEST_PLACED = 128  # pixels; smaller images are compared as they are: enlarged they look alike


class FinishedItem(Struct):
    """An image of `Finished`."""

    stem: str
    split: str
    group: int


class Finished(Struct):
    """What is read of the manifest of an earlier call; other versions have other names."""

    items: list[FinishedItem]
    leakage: bool
    leaking_pairs: list[tuple[str, str, float]]
    failures: list[str]
    left_out: dict[str, list[str]]


Name = TypeVar("Name", str, int)  # of a split or a fold


@dataclass(frozen=True)
class Case:
    """What the split needs to know of a usable pair.

    Attributes:
        source: its files.
        height: of the image, pixels.
        width: of the image, pixels.
        category: id of most of its lesion, 1, 2, ..., by the annotations; 0 where it has none.
        lesion: share of the image that is lesion, 0..1.
        white_corners: see `ovseg.data.masks.MaskFacts`.
        outside: number of an outline's points that lie outside of the image.
        soft: see `ovseg.data.prepare.sources.Labels`.
        orientation: of its EXIF data, 1..8; 1 is as it is stored.
        source_fingerprint: of the image as it is.
        placed_fingerprint: of the image in a square of `COMPARED_SIZE`, which is what an audit
            sees; resizing changes a similarity by up to 0.02. That of the image as it is where its
            longer side is below `SMALLEST_PLACED`.
    """

    source: Source
    height: int
    width: int
    category: int
    lesion: float
    white_corners: bool
    outside: int
    soft: int
    orientation: int
    source_fingerprint: Fingerprint
    placed_fingerprint: Fingerprint


@dataclass(frozen=True)
class Assignment:
    """Where a case belongs: its split, its group of near-duplicates, and its fold, if any."""

    split: str
    group: int
    fold: int | None


def prepare_dataset(
    source: Path | None,
    output: Path,
    size: int = 512,
    fit: str = "letterbox",
    split: str = "auto",
    split_file: Path | None = None,
    folds: int = 0,
    allow_leakage: bool = False,
    seed: int = 42,
    overwrite: bool = False,
    *,
    layout: str = "auto",
    reading: Reading | None = None,
    unmatched: str = "error",
    groups: str | None = None,
    fractions: str = DEFAULT_FRACTIONS,
) -> dict[str, Any]:
    """Write `{train,valid,test}/{images,masks,categories}/<stem>.png` and `manifest.json`.

    Images are RGB (area when shrinking, cubic when enlarging), masks 0/255, category maps 0
    (background) and 1, 2, ... (nearest neighbour). A file that can't be used is named in the
    manifest's `failures`, a file that was left out in `left_out`, by the reason; the others are
    written.

    Args:
        source: see `ovseg.data.prepare.layouts.find_dataset`.
        output: folder to make; it appears when it is complete. Called again with the same source
            and settings, this changes nothing and returns the manifest.
        size: side of the squares, pixels, 16..8192.
        fit: see `ovseg.data.boxes.fit_box`.
        split: `groups` divides groups of near-duplicates, stratified by category and lesion size;
            `official` is the dataset's own split: its folders, or the lists of OTU_2d (see
            `ovseg.data.prepare.splits`), where an eighth of train, by groups, is valid if it has no
            other; `auto` is `official` for a dataset with folders of train and test.
        split_file: a split to use instead, see `ovseg.data.prepare.splits.read_split_file`.
        folds: also divide train and valid together into so many folds, by groups, for
            cross-validation: each entry's `fold` is 0..folds-1, or null for a test image; 0 makes
            none.
        allow_leakage: accept near-duplicates across splits; the manifest's `leakage` and every
            result report them.
        seed: of the split and the folds.
        overwrite: replace an earlier dataset.
        layout: of the source, see `ovseg.data.prepare.layouts.LAYOUTS`; `auto` recognises it.
        reading: how labels are read, by default as the layout says.
        unmatched: what becomes of images without labels, see `UNMATCHED`.
        groups: table of the patient or examination of each image (see
            `ovseg.data.prepare.tables.read_table`), or `folders`: images of one folder are of one
            patient. None of these is divided, nor are near-duplicates.
        fractions: of images in train, valid and test, for a split by groups; see
            `ovseg.data.prepare.splits.read_fractions`.

    Returns:
        The manifest.

    Raises:
        InputError: the source has no known layout, images lack labels, a setting is out of range,
            near-duplicates are in two splits, a split or fold would be empty, no pair is usable,
            output exists, lies in the source or holds it.
    """
    output = Path(output)
    reading = replace(reading or Reading(), patients=groups == "folders")
    _check_settings(size, fit, split, split_file, folds, seed)
    choose("unmatched", unmatched, UNMATCHED)
    source = None if source is None else Path(source)
    inputs = [path for path in (source, reading.images, reading.masks) if path is not None]
    if source is not None and source.is_file() and reading.images is None:
        inputs.append(source.parent)  # of its pictures
    refuse_nested(output, inputs)

    layout, found = find_dataset(source, layout, reading)
    print(_describe(layout, found))
    sources, left_out = settle_unmatched(found, unmatched)
    sources = _with_patients(found.root, sources, groups)
    if split == "auto":
        split = _choose_split(sources, split_file)
    shares = read_fractions(fractions)
    is_given = bool(split_file) or split == "official"
    if is_given and shares != read_fractions(DEFAULT_FRACTIONS):
        raise InputError(
            f"--fractions is for a split by groups, but the split is {split_file or split}. Leave "
            "it out, or use --split groups."
        )
    given_split = _read_given_split(found, sources, split, split_file)
    folders = [path for path in (reading.images, reading.masks) if path is not None]
    left_out |= list_unused(found, folders or [found.root])
    left_out = {reason: names for reason, names in left_out.items() if names}
    settings = {
        "layout": layout,
        "mask_suffix": reading.mask_suffix,
        "labels": list(reading.labels),
        "keep_categories": reading.categories,
        "invert_masks": reading.invert_masks,
        "kind": reading.kind,
        "unmatched": unmatched,
        "size": size,
        "fit": fit,
        "split": "file" if split_file else split,
        "seed": seed,
        "folds": folds,
        "fractions": None if is_given else shares,
        "allow_leakage": allow_leakage,
        "listed_sha256": None if given_split is None else content_digest(given_split),
        "source_files": _describe_files(sources),
        "near_duplicates": {str(reach): threshold for reach, threshold in THRESHOLDS.items()},
    }
    if not overwrite:
        earlier = _read_finished(output)
        if earlier is not None:
            different = _compare_settings(earlier, settings)
            if not different:
                print(f"{output} was made from these files with these settings and is kept.")
                return earlier
            raise InputError(
                f"{output} was made with other settings ({first_five(different)}). Add "
                "--overwrite, or choose another --output."
            )

    check_output_dir(output, overwrite, marker=FILE_NAME)
    cases, failures = _examine_all(found.root, sources)
    stems = [case.source.stem for case in cases]
    patients = [case.source.patient for case in cases]
    related = pair_patients(patients) + _find_duplicates(cases, stems)
    group_of = group_images(len(cases), related).tolist()
    splits, fold_of = _assign(cases, group_of, given_split, split, shares, folds, seed)
    leaks = check_leakage(related, splits, stems, allow_leakage)
    categories = found.categories or _classes_with_lesion(cases)
    with atomic_dir(output, overwrite, FILE_NAME, inputs=inputs) as folder:

        def write(planned: tuple[Case, Assignment]) -> dict[str, Any]:
            case, assignment = planned
            return _write_case(folder, found.root, case, assignment, size, fit, categories)

        planned = []
        for index, case in enumerate(cases):
            assignment = Assignment(splits[index], group_of[index], fold_of.get(index))
            planned.append((case, assignment))
        items = map_with_progress(write, planned, "Writing pairs")
        manifest = {
            "made_by": "prepare_data",
            **settings,
            "leakage": bool(leaks),
            "leaking_pairs": leaks,
            "categories": categories,
            "failures": found.failures + failures,
            "left_out": left_out,
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
    if split_file and split == "official":
        raise InputError(
            f"--split {split} and --split_file {split_file} are two splits. Leave out one of them."
        )


def _describe(layout: str, found: Found) -> str:
    """One line on what was found, and the reader's notes."""
    kinds = sorted({source.kind for source in found.sources + found.without_labels} - {""})
    count = len(found.sources) + len(found.without_labels)
    text = f"{layout} layout: {count} images"
    if kinds:
        text += f" in {len(kinds)} classes ({first_five(kinds)})"
    elif len(found.categories) > 1:
        text += f", {len(found.categories)} categories ({first_five(found.categories)})"
    return "\n".join([text, *found.notes])


def _with_patients(root: Path, sources: list[Source], groups: str | None) -> list[Source]:
    """The images with the patient or examination of each, see `prepare_dataset`."""
    if groups is None:
        return sources
    if groups == "folders":
        return group_by_folders(root, sources)
    return read_groups(Path(groups), sources)


def _choose_split(sources: Sequence[Source], split_file: Path | None) -> str:
    """The splitter of `auto`, and a line about it where the dataset has a split of its own."""
    own = {source.split for source in sources} - {""}
    if split_file or not own:
        return "groups"
    if "" not in {source.split for source in sources} and own & {"train", "trainval"}:
        if "test" in own:
            print("Its own split is kept. For a new one by groups add --split groups.")
            return "official"
        if "valid" in own:
            print(
                "Its own split has no test images, so a new one is made by groups. To test on its "
                "valid images add --split official."
            )
    return "groups"


def _read_given_split(
    found: Found, sources: Sequence[Source], split: str, split_file: Path | None
) -> dict[str, str] | None:
    """The split that a file or folders give, stem -> split, or None where groups make the split."""
    if split_file:
        return read_split_file(split_file, sources)
    if split == "official":
        own = {source.stem: source.split for source in sources}
        if any(own.values()):
            return read_own_split(found.root, own)
        found.read.update(found.root / name for name in OFFICIAL_LISTS.values())
        return read_official(found.root, [source.stem for source in sources])
    return None


def _examine_all(root: Path, sources: list[Source]) -> tuple[list[Case], list[str]]:
    """The usable pairs, and why the others are not.

    Raises:
        InputError: none is usable.
    """

    def examine(item: Source) -> Case | str:
        try:
            return _examine(item)
        except InputError as error:
            return str(error)

    if not sources:
        raise InputError(
            f"No image in {root} has an outline or a mask. Boxes and labels of whole images are no "
            "masks: export polygons."
        )
    results = map_with_progress(examine, sources, "Examining pairs")
    cases = [result for result in results if isinstance(result, Case)]
    failures = [result for result in results if isinstance(result, str)]
    if not cases:
        raise InputError(
            f"None of the {len(sources)} pairs in {root} can be used: {join_problems(failures)}"
        )
    _judge_masks(root, cases)
    _tell_of_changes(cases)
    return cases, failures


def _tell_of_changes(cases: Sequence[Case]) -> None:
    """Print a line on each thing that was done to pictures or labels unasked."""
    outside = [case for case in cases if case.outside]
    if outside:
        points = sum(case.outside for case in outside)
        names = first_five(case.source.stem for case in outside)
        print(
            f"{points} points of outlines in {len(outside)} images lie outside of the image and "
            f"were cut off: {names}"
        )
    soft = [case for case in cases if case.soft]
    if soft:
        pixels = sum(case.soft for case in soft)
        share = pixels / sum(case.height * case.width for case in soft)
        print(
            f"{len(soft)} of {len(cases)} masks have values between their darkest and their "
            f"brightest one, in {pixels:,} pixels ({share:.2%}): they were divided at the middle."
        )
    turned = [case.source.stem for case in cases if case.orientation != UPRIGHT]
    if turned:
        print(
            f"{len(turned)} of {len(cases)} images were turned as viewers show them (EXIF "
            f"orientation): {first_five(turned)}. Check that their labels were drawn so."
        )


def _judge_masks(root: Path, cases: Sequence[Case]) -> None:
    """Judge all masks together: what is legal for one can't be meant for all.

    Raises:
        InputError: no image has a lesion, or all are lesion everywhere.
    """
    if not any(case.lesion for case in cases):
        raise InputError(
            f"None of the {len(cases)} images in {root} has a lesion. Check how the masks or "
            "annotations were exported."
        )
    if all(case.lesion == 1 for case in cases):
        raise InputError(
            f"All {len(cases)} images in {root} are lesion everywhere. Check how the masks or "
            "annotations were exported."
        )
    white = sum(case.white_corners for case in cases)
    drawn = sum(0 < case.lesion < 1 for case in cases)
    if white and white >= WHITE_CORNERS_SHARE * drawn:
        print(
            f"{white} of {len(cases)} masks are lesion at all four corners: is the lesion drawn in "
            "black? Then add --invert_masks."
        )


def _examine(source: Source) -> Case:
    """A pair as the split sees it; raises as `_read_pair`."""
    image, labels, orientation = _read_pair(source)
    height, width = labels.mask.shape
    ids = labels.mask if labels.categories is None else labels.categories
    pixels = cv2.calcHist([ids], [0], None, [256], [0, 256]).ravel()
    pixels[0] = 0  # background
    lesion = float(labels.mask.mean())
    placed = image
    if max(height, width) >= SMALLEST_PLACED:
        placed = place(image, COMPARED_SIZE, "letterbox")
    return Case(
        source,
        height,
        width,
        category=int(pixels.argmax()),
        lesion=lesion,
        white_corners=has_white_corners(labels.mask > 0),
        outside=labels.outside,
        soft=labels.soft,
        orientation=orientation,
        source_fingerprint=fingerprint(image),
        placed_fingerprint=fingerprint(placed),
    )


def _read_pair(source: Source) -> tuple[np.ndarray, Labels, int]:
    """An image, uint8 (H, W, 3), its labels, and its EXIF orientation.

    Raises:
        InputError: it can't be used.
    """
    image, orientation = read_image_and_orientation(source.image_path)
    height, width = image.shape[:2]
    return image, source.read_labels(height, width), orientation


def _classes_with_lesion(cases: Sequence[Case]) -> list[str]:
    """The classes of images that are categories: those in which some image has a lesion."""
    return sorted({case.source.kind for case in cases if case.category})


def _assign(
    cases: Sequence[Case],
    groups: Sequence[int],
    given_split: Mapping[str, str] | None,
    split: str,
    fractions: Mapping[str, float],
    folds: int,
    seed: int,
) -> tuple[list[str], dict[int, int]]:
    """The split of every case, and the fold of those that are not in test, by their index.

    Args:
        cases: the usable pairs.
        groups: of near-duplicates, a number for each case.
        given_split: see `_read_given_split`.
        split: see `prepare_dataset`.
        fractions: of the splits that are made.
        folds: see `prepare_dataset`.
        seed: of the split and the folds.

    Raises:
        InputError: a split or fold would be empty.
    """
    strata = stratify(_classes_of(cases), [case.lesion for case in cases])
    everyone = range(len(cases))
    if given_split is None:
        split_of = _deal(everyone, groups, strata, fractions, seed)
    else:
        split_of = {index: given_split[cases[index].source.stem] for index in everyone}
        if split == "official" and "valid" not in split_of.values():
            in_train = [index for index in everyone if split_of[index] == "train"]
            split_of |= _deal(in_train, groups, strata, {"train": 7 / 8, "valid": 1 / 8}, seed)

    fold_of: dict[int, int] = {}
    if folds:
        in_folds = [index for index in everyone if split_of[index] != "test"]
        fold_of = _deal(in_folds, groups, strata, dict.fromkeys(range(folds), 1 / folds), seed)
    return [split_of[index] for index in everyone], fold_of


def _classes_of(cases: Sequence[Case]) -> list[int]:
    """A number for what each image shows: its class, or else the category of its lesion."""
    kinds = sorted({case.source.kind for case in cases})
    if len(kinds) > 1:
        return [kinds.index(case.source.kind) for case in cases]
    return [case.category for case in cases]


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
            f"leave split or fold {first_five(empty)} empty. Add images, or ask for fewer folds or "
            "other --fractions."
        )
    return dict(zip(indices, dealt, strict=True))


def _find_duplicates(cases: Sequence[Case], stems: Sequence[str]) -> list[NearDuplicate]:
    """The near-duplicates among the images as they are or in a square, in order.

    The similarity of a pair that is found in both is that of the images in a square.
    """
    of_sources = [case.source_fingerprint for case in cases]
    placed = [case.placed_fingerprint for case in cases]
    found: dict[tuple[int, int], NearDuplicate] = {}
    for fingerprints in (of_sources, placed):
        for duplicate in find_near_duplicates(fingerprints, stems):
            found[duplicate[:2]] = duplicate
    return sorted(found.values())


def _write_case(
    folder: Path,
    root: Path,
    case: Case,
    assignment: Assignment,
    size: int,
    fit: str,
    names: Sequence[str],
) -> dict[str, Any]:
    """Write the three pictures of a case; returns its entry in the manifest."""
    source = case.source
    image, labels, _ = _read_pair(source)
    category = case.category
    categories = labels.categories
    if categories is None:
        if source.kind:
            category = names.index(source.kind) + 1 if case.category else 0
        categories = labels.mask * np.uint8(category)
    pictures = (image, labels.mask * np.uint8(255), categories)
    for kind, picture in zip(KINDS, pictures, strict=True):
        path = folder / assignment.split / kind / f"{source.stem}.png"
        write_image(path, place(picture, size, fit))
    item = {
        "stem": source.stem,
        **asdict(assignment),
        "source": path_in(root, source.image_path),
        "height": case.height,
        "width": case.width,
        "box": asdict(fit_box(case.height, case.width, size, fit)),
        "category": category,
    }
    if source.kind:
        item["class"] = source.kind
    if source.patient:
        item["patient"] = source.patient
    return item


def _describe_files(sources: Sequence[Source]) -> dict[str, int | str]:
    """Number, size and digest of the source files, which change when a file does."""
    paths: dict[Path, None] = {}  # a file of several images counts once
    for source in sources:
        paths[source.image_path] = None
        paths.update(dict.fromkeys(source.label_paths))
    digests = map_with_progress(file_digest, list(paths), "Reading files")
    facts = [(source.stem, source.kind, source.patient) for source in sources]
    size = sum(path.stat().st_size for path in paths)
    return {"count": len(paths), "bytes": size, "sha256": content_digest([digests, facts])}


def _read_finished(output: Path) -> dict[str, Any] | None:
    """The manifest of an earlier dataset whose files are all there, or None."""
    try:
        manifest = read_manifest(output)
    except InputError:
        return None
    if find_problem(manifest, Finished):
        return None
    for item in manifest["items"]:
        for kind in KINDS:
            if not (output / item["split"] / kind / f"{item['stem']}.png").is_file():
                return None
    return manifest


def _compare_settings(manifest: Mapping[str, Any], settings: Mapping[str, Any]) -> list[str]:
    """What a dataset was not made with, in words; an older manifest may lack some settings."""
    different = []
    for name, value in settings.items():
        if name not in manifest or manifest[name] != value:
            different.append(SETTING_NAMES.get(name, name))
    return different
