"""Make a dataset of squares, masks and category maps from the official OTU_2d download."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ovseg.core.errors import InputError, first_five
from ovseg.core.files import atomic_dir, check_output_dir, content_digest, write_image, write_json
from ovseg.core.registry import choose
from ovseg.data.geometry import FITS, fit_box, place
from ovseg.data.pairs import list_images, map_with_progress, open_picture, read_image, read_mask
from ovseg.data.prepare.duplicates import (
    THRESHOLDS,
    Fingerprint,
    NearDuplicate,
    find_near_duplicates,
    fingerprint,
    group_images,
)
from ovseg.data.prepare.splits import (
    FRACTIONS,
    check_leakage,
    deal_groups,
    read_official,
    read_split_file,
    stratify,
)

# The colours and the order of the download's own label files (labels 0..7); ids in our category
# maps are one higher, 0 is background.
CATEGORIES = {
    (64, 0, 0): "chocolate cyst",
    (0, 64, 0): "serous cystadenoma",
    (0, 0, 64): "teratoma",
    (64, 0, 64): "theca cell tumour",
    (64, 64, 0): "simple cyst",
    (64, 64, 64): "normal ovary",
    (0, 128, 0): "mucinous cystadenoma",
    (0, 0, 128): "high-grade serous cystadenoma",
}
KINDS = ("images", "masks", "categories")  # folders of a split
SPLITTERS = {
    "groups": "80 : 10 : 10 by near-duplicate groups",
    "official": "train.txt and val.txt of the download",
}
MAX_FOLDS = 20
SMALLEST_COMPARED = 128  # pixels; different images that are shrunk below it look alike

Name = TypeVar("Name", str, int)  # of a split or a fold


@dataclass(frozen=True)
class Source:
    """The files of one image of the download.

    Attributes:
        stem: name of the image file without suffix.
        image_path: the image.
        annotation_path: the annotation in colours.
        binary_path: the binary annotation, where there is one.
    """

    stem: str
    image_path: Path
    annotation_path: Path
    binary_path: Path | None


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
            changes a similarity by up to 0.02.
    """

    source: Source
    height: int
    width: int
    category: int
    lesion: float
    source_fingerprint: Fingerprint
    written_fingerprint: Fingerprint


@dataclass(frozen=True)
class Placement:
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
    listed = _read_listed(source, [item.stem for item in sources], split, split_file)
    settings = {
        "size": size,
        "fit": fit,
        "split": "file" if split_file else split,
        "seed": seed,
        "folds": folds,
        "allow_leakage": allow_leakage,
        "listed_sha256": None if listed is None else content_digest(listed),
        "source_files": _measure_files(sources),
        "near_duplicates": {str(reach): threshold for reach, threshold in THRESHOLDS.items()},
    }
    if not overwrite:
        earlier = _read_finished(output)
        if earlier is not None and _has_settings(earlier, settings):
            return earlier

    check_output_dir(output, overwrite, marker="manifest.json")
    cases, failures = _examine_all(source, sources, size, fit)
    placements, leaks = _place_cases(cases, listed, split, folds, allow_leakage, seed)
    with atomic_dir(output, overwrite, "manifest.json", inputs=[source]) as folder:

        def write(planned: tuple[Case, Placement]) -> dict[str, Any]:
            case, placement = planned
            return _write_case(folder, case, placement, size, fit)

        planned = list(zip(cases, placements, strict=True))
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
        write_json(folder / "manifest.json", manifest)
    return manifest


def find_sources(source: Path) -> tuple[list[Source], list[str]]:
    """Match images and annotations of the download by stem.

    Returns:
        The pairs in natural order, and a message for each file without its partner.

    Raises:
        InputError: a folder is missing or empty, or nothing matches.
    """
    if not source.is_dir():
        raise InputError(
            f"There is no folder {source}. "
            "Name the unpacked download, which holds images and annotations."
        )
    images = list_images(source / "images")
    colour = {}
    binary = {}
    for stem, path in list_images(source / "annotations").items():
        if stem.endswith("_binary"):
            binary[stem.removesuffix("_binary")] = path
        else:
            colour[stem] = path

    sources = []
    unmatched = []
    for stem, path in images.items():
        if stem in colour:
            sources.append(Source(stem, path, colour[stem], binary.get(stem)))
        else:
            unmatched.append(f"{path} has no annotation of its stem.")
    for stem, path in colour.items():
        if stem not in images:
            unmatched.append(f"{path} has no image of its stem.")
    if not sources:
        raise InputError(
            f"No image in {source} has an annotation of its stem: {first_five(unmatched)}"
        )
    return sources, unmatched


def read_categories(path: Path) -> tuple[np.ndarray, int]:
    """Read a colour annotation as ids.

    Returns:
        Category map, uint8 (H, W), 0 or the id; and that id, 1..8, or 0 where the annotation is
        empty.

    Raises:
        InputError: unreadable, a colour that is no category's, or two categories.
    """
    rgb = np.array(open_picture(path).convert("RGB"))
    codes = rgb.astype(np.uint32) @ np.array([2**16, 2**8, 1], np.uint32)
    colours = []
    for code in np.unique(codes[codes > 0]).tolist():
        colours.append((code >> 16, code >> 8 & 255, code & 255))

    unknown = [colour for colour in colours if colour not in CATEGORIES]
    if unknown:
        raise InputError(
            f"{path} has {len(unknown)} colours of no category: {first_five(unknown)}. "
            "Correct or remove it."
        )
    if len(colours) > 1:
        names = first_five(CATEGORIES[colour] for colour in colours)
        raise InputError(
            f"{path} has {len(colours)} categories, expected one: {names}. Correct or remove it."
        )

    category = 0
    if colours:
        category = list(CATEGORIES).index(colours[0]) + 1
    return (codes > 0).astype(np.uint8) * np.uint8(category), category


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


def _read_listed(
    source: Path, stems: list[str], split: str, split_file: Path | None
) -> dict[str, str] | None:
    """The split that a file gives, stem -> split, or None where groups make the split."""
    if split_file:
        return read_split_file(split_file, stems)
    if split == "official":
        return read_official(source, stems)
    return None


def _read_pair(source: Source) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """Image, mask of 0 and 1, category map and category of a pair.

    Raises:
        InputError: it can't be used.
    """
    image = read_image(source.image_path)
    categories, category = read_categories(source.annotation_path)
    if source.binary_path:
        mask = read_mask(source.binary_path, threshold=0)
    else:
        mask = (categories > 0).astype(np.uint8)
    if not image.shape[:2] == categories.shape == mask.shape:
        sizes = f"{image.shape[:2]}, {categories.shape}, {mask.shape}"
        raise InputError(
            f"{source.image_path}, its annotation and its mask differ in size ({sizes}). "
            "Correct or remove them."
        )
    return image, mask, categories, category


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
    """A pair as the split sees it; raises as `_read_pair`."""
    image, mask, _, category = _read_pair(source)
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


def _place_cases(
    cases: list[Case],
    listed: Mapping[str, str] | None,
    split: str,
    folds: int,
    allow_leakage: bool,
    seed: int,
) -> tuple[list[Placement], list[list[str | float]]]:
    """Split, group and fold of every case, and the near-duplicates that are in two splits.

    Raises:
        InputError: a split or fold would be empty, or near-duplicates are in two splits and may not
            be.
    """
    stems = [case.source.stem for case in cases]
    pairs = _find_pairs(cases, stems)
    groups = group_images(len(cases), pairs).tolist()
    strata = stratify([case.category for case in cases], [case.lesion for case in cases])

    def deal(among: list[int], fractions: Mapping[Name, float]) -> dict[int, Name]:
        """Split or fold of the cases with these indices."""
        groups_among = [groups[i] for i in among]
        dealt = deal_groups(groups_among, [strata[i] for i in among], fractions, seed)
        empty = [name for name in fractions if name not in dealt]
        if empty:
            raise InputError(
                f"{len(among)} images in {len(set(groups_among))} groups of near-duplicates leave "
                f"split or fold {first_five(empty)} empty. Add images, or ask for fewer folds."
            )
        return dict(zip(among, dealt, strict=True))

    everyone = list(range(len(cases)))
    if listed is None:
        split_of = deal(everyone, FRACTIONS)
    else:
        split_of = {i: listed[stems[i]] for i in everyone}
    if split == "official":
        in_train = [i for i in everyone if split_of[i] == "train"]
        split_of |= deal(in_train, {"train": 7 / 8, "valid": 1 / 8})
    splits = [split_of[i] for i in everyone]
    leaks = check_leakage(pairs, splits, stems, allow_leakage)

    fold_of: dict[int, int] = {}
    if folds:
        in_folds = [i for i in everyone if splits[i] != "test"]
        fold_of = deal(in_folds, dict.fromkeys(range(folds), 1 / folds))
    placements = [Placement(splits[i], groups[i], fold_of.get(i)) for i in everyone]
    return placements, leaks


def _find_pairs(cases: Sequence[Case], stems: Sequence[str]) -> list[NearDuplicate]:
    """The near-duplicates among the images as they are or as they are written, in order.

    The similarity of a pair that is found in both is that of the images as they are written.
    """
    of_sources = [case.source_fingerprint for case in cases]
    as_written = [case.written_fingerprint for case in cases]
    found: dict[tuple[int, int], NearDuplicate] = {}
    for fingerprints in (of_sources, as_written):
        for pair in find_near_duplicates(fingerprints, stems):
            found[pair[:2]] = pair
    return sorted(found.values())


def _write_case(
    folder: Path, case: Case, placement: Placement, size: int, fit: str
) -> dict[str, Any]:
    """Write the three pictures of a case; returns its entry in the manifest."""
    image, mask, categories, category = _read_pair(case.source)
    pictures = (image, mask * np.uint8(255), categories)
    for kind, picture in zip(KINDS, pictures, strict=True):
        path = folder / placement.split / kind / f"{case.source.stem}.png"
        write_image(path, place(picture, size, fit))
    return {
        "stem": case.source.stem,
        **asdict(placement),
        "source": f"images/{case.source.image_path.name}",
        "height": case.height,
        "width": case.width,
        "box": asdict(fit_box(case.height, case.width, size, fit)),
        "category": category,
    }


def _measure_files(sources: Iterable[Source]) -> dict[str, int]:
    """Number and total size in bytes of the source files.

    They change when files are added, removed or edited.
    """
    count = 0
    size = 0
    for source in sources:
        for path in (source.image_path, source.annotation_path, source.binary_path):
            if path is not None:
                count += 1
                size += path.stat().st_size
    return {"count": count, "bytes": size}


def _read_finished(output: Path) -> dict[str, Any] | None:
    """The manifest of an earlier dataset whose files are all there, or None."""
    try:
        manifest = json.loads((output / "manifest.json").read_text(encoding="utf-8"))
        for item in manifest["items"]:
            for kind in KINDS:
                if not (output / item["split"] / kind / f"{item['stem']}.png").is_file():
                    return None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return manifest


def _has_settings(manifest: Mapping[str, Any], settings: Mapping[str, Any]) -> bool:
    """Whether a dataset was made with these settings; an older manifest may lack some."""
    return all(name in manifest and manifest[name] == settings[name] for name in settings)
