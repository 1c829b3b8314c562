"""The official OTU_2d download to a dataset tree: squares, binary masks, category ids, a split and a manifest."""

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ovseg.core.errors import InputError, first_five
from ovseg.core.files import atomic_dir, check_output_dir, content_digest, write_image, write_json
from ovseg.core.registry import choose
from ovseg.data.geometry import FITS, fit_box, place
from ovseg.data.pairs import list_images, map_with_progress, open_picture, read_image, read_mask
from ovseg.data.prepare.duplicates import (
    THRESHOLDS,
    Fingerprint,
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

# The colours and the order of the download's own label files (labels 0..7); ids in our masks are one higher, 0 is none.
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
KINDS = ("images", "masks", "categories")
SPLITTERS = {
    "groups": "80 : 10 : 10 by near-duplicate groups",
    "official": "train.txt and val.txt of the download",
}
MAX_FOLDS = 20
FAITHFUL = 128  # pixels; strangers shrunk below it look alike


@dataclass(frozen=True)
class Source:
    """One image of the download: its annotation in colours, and the binary one where it is present."""

    stem: str
    image_path: Path
    annotation_path: Path
    binary_path: Path | None


@dataclass(frozen=True)
class Case:
    """What the split needs to know of a usable pair.

    `lesion` is the share of the image that is lesion, 0..1; `fingerprints` are those of the image as it is and as it is
    written: resizing moves a similarity by up to 0.02, and an audit sees what is written.
    """

    item: Source
    height: int
    width: int
    category: int
    lesion: float
    fingerprints: tuple[Fingerprint, Fingerprint]


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

    Images are RGB (area when shrinking, cubic when enlarging), masks 0/255, category maps 0 (none) and 1..8 (nearest).
    A file that can't be used is named in the manifest's `failures` and stops nothing else.

    Args:
        source: folder with `images/N.JPG` and `annotations/N.PNG`; `N_binary.PNG`, `train.txt`, `val.txt` if present.
        output: folder to make; it appears when it is whole. Run again with the same source and settings, nothing is
            done and the manifest is returned.
        size: side of the squares, pixels, 16..8192.
        fit: see `ovseg.data.geometry.fit_box`.
        split: `groups` deals groups of near-duplicates 80 : 10 : 10, stratified by category and lesion size;
            `official` takes val.txt as test and an eighth of train.txt, by groups, as valid.
        split_file: a split to use instead, see `ovseg.data.prepare.splits.read_split_file`.
        folds: also deal train and valid together to so many folds, by groups, for cross-validation: each entry's
            `fold` is 0..folds-1, or null for a test image; 0 deals none.
        allow_leakage: accept near-duplicates across splits; the manifest's `leakage` and every result tell of them.
        seed: of the dealing.
        overwrite: replace an earlier dataset.

    Returns:
        The manifest.

    Raises:
        InputError: the source is not that layout, a setting is out of range, near-duplicates are in two splits, a
            split or fold would be empty, no pair is usable, or output exists.
    """
    source, output = Path(source), Path(output)
    _check_settings(size, fit, split, split_file, folds, seed)
    items, alone = find_sources(source)
    listed = _read_listed(source, [item.stem for item in items], split, split_file)
    settings = {
        "size": size,
        "fit": fit,
        "split": "file" if split_file else split,
        "seed": seed,
        "folds": folds,
    }
    settings |= {
        "allow_leakage": allow_leakage,
        "listed_sha256": listed and content_digest(listed),
        "source_files": _fingerprint(items),
    }
    settings["near_duplicates"] = {str(reach): limit for reach, limit in THRESHOLDS.items()}
    if not overwrite and _settings_of(output, settings) == settings:
        return json.loads((output / "manifest.json").read_text(encoding="utf-8"))
    check_output_dir(output, overwrite, marker="manifest.json")
    cases, failures = _examine_all(source, items, size, fit)
    entries, leaks = _plan(cases, listed, split, folds, allow_leakage, seed)
    with atomic_dir(output, overwrite, "manifest.json", inputs=[source]) as folder:
        results = map_with_progress(
            _writer(folder, size, fit), list(zip(cases, entries, strict=True)), "Writing pairs"
        )
        manifest = {
            "made_by": "prepare_data",
            **settings,
            "leakage": bool(leaks),
            "leaking_pairs": leaks,
        }
        manifest |= {
            "categories": list(CATEGORIES.values()),
            "failures": [*alone, *failures],
            "items": results,
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
            f"There is no folder {source}. Name the unpacked download, which holds images and annotations."
        )
    images, annotations = list_images(source / "images"), list_images(source / "annotations")
    binary = {
        stem.removesuffix("_binary"): path
        for stem, path in annotations.items()
        if stem.endswith("_binary")
    }
    colour = {stem: path for stem, path in annotations.items() if not stem.endswith("_binary")}
    alone = [
        f"{path} has no annotation of its stem."
        for stem, path in images.items()
        if stem not in colour
    ]
    alone += [
        f"{path} has no image of its stem." for stem, path in colour.items() if stem not in images
    ]
    items = [
        Source(stem, path, colour[stem], binary.get(stem))
        for stem, path in images.items()
        if stem in colour
    ]
    if not items:
        raise InputError(f"No image in {source} has an annotation of its stem: {first_five(alone)}")
    return items, alone


def read_categories(path: Path) -> tuple[np.ndarray, int]:
    """A colour annotation as ids.

    Returns:
        Category map, uint8 (H, W), 0 or the id; and that id, 1..8, or 0 where the annotation is empty.

    Raises:
        InputError: unreadable, a colour that is no category's, or two categories.
    """
    rgb = np.array(open_picture(path).convert("RGB"))
    codes = rgb.astype(np.uint32) @ np.array([65536, 256, 1], np.uint32)
    colours = [
        (int(code) >> 16, int(code) >> 8 & 255, int(code) & 255)
        for code in np.unique(codes)
        if code
    ]
    unknown = [colour for colour in colours if colour not in CATEGORIES]
    if unknown:
        raise InputError(
            f"{path} has {len(unknown)} colours of no category: {first_five(unknown)}. Mend or remove it."
        )
    if len(colours) > 1:
        names = first_five(CATEGORIES[colour] for colour in colours)
        raise InputError(
            f"{path} has {len(colours)} categories, expected one: {names}. Mend or remove it."
        )
    category = list(CATEGORIES).index(colours[0]) + 1 if colours else 0
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
            f"--split {split} and --split-file {split_file} are two splits. Leave out one of them."
        )


def _read_listed(
    source: Path, stems: list[str], split: str, split_file: Path | None
) -> dict[str, str] | None:
    """The split that a file gives, or None where the groups are to be dealt."""
    if split_file:
        return read_split_file(split_file, stems)
    return read_official(source, stems) if split == "official" else None


def _read_pair(item: Source) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """Image, mask of 0 and 1, category map and category of a pair; raises InputError where it can't be used."""
    image, (categories, category) = (
        read_image(item.image_path),
        read_categories(item.annotation_path),
    )
    mask = read_mask(item.binary_path, 0) if item.binary_path else (categories > 0).astype(np.uint8)
    if not image.shape[:2] == categories.shape == mask.shape:
        sizes = f"{image.shape[:2]}, {categories.shape}, {mask.shape}"
        raise InputError(
            f"{item.image_path}, its annotation and its mask differ in size ({sizes}). Mend or remove them."
        )
    return image, mask, categories, category


def _examine(item: Source, size: int, fit: str) -> Case | str:
    """A pair as the split sees it, or why it can't be used."""
    try:
        image, mask, _, category = _read_pair(item)
    except InputError as error:
        return str(error)
    fingerprints = (
        fingerprint(image),
        fingerprint(place(image, size, fit) if size >= FAITHFUL else image),
    )
    return Case(item, *image.shape[:2], category, float(mask.mean()), fingerprints)


def _examine_all(
    source: Path, items: list[Source], size: int, fit: str
) -> tuple[list[Case], list[str]]:
    """The usable pairs, and why the others are not."""
    results = map_with_progress(lambda item: _examine(item, size, fit), items, "Examining pairs")
    cases = [result for result in results if isinstance(result, Case)]
    failures = [result for result in results if isinstance(result, str)]
    if not cases:
        raise InputError(
            f"None of the {len(items)} pairs in {source} can be used: {first_five(failures)}"
        )
    return cases, failures


def _plan(
    cases: list[Case],
    listed: dict[str, str] | None,
    split: str,
    folds: int,
    allow_leakage: bool,
    seed: int,
) -> tuple[list[dict[str, Any]], list[list]]:
    """Group, split and fold of every case, and the near-duplicates that are in two splits."""
    stems = [case.item.stem for case in cases]
    found = [
        find_near_duplicates(prints, stems)
        for prints in zip(*(case.fingerprints for case in cases), strict=True)
    ]
    pairs = sorted({pair[:2]: pair for each in found for pair in each}.values())
    groups = group_images(len(cases), pairs)
    strata = stratify([case.category for case in cases], [case.lesion for case in cases])

    def deal(among: list[int], fractions: dict) -> dict[int, Any]:
        dealt = deal_groups([groups[i] for i in among], [strata[i] for i in among], fractions, seed)
        empty = [name for name in fractions if name not in dealt]
        if empty:
            raise InputError(
                f"{len(among)} images in {len({groups[i] for i in among})} groups of near-duplicates leave split or "
                f"fold {first_five(empty)} empty. Add images, or ask for fewer folds."
            )
        return dict(zip(among, dealt, strict=True))

    everyone = list(range(len(cases)))
    splits = {i: listed[stems[i]] for i in everyone} if listed else deal(everyone, FRACTIONS)
    if split == "official":
        splits |= deal(
            [i for i in everyone if splits[i] == "train"], {"train": 7 / 8, "valid": 1 / 8}
        )
    leaks = check_leakage(pairs, [splits[i] for i in everyone], stems, allow_leakage)
    in_folds = [i for i in everyone if splits[i] != "test"] if folds else []
    fold = deal(in_folds, dict.fromkeys(range(folds), 1 / folds)) if folds else {}
    return [
        {"split": splits[i], "group": int(groups[i]), "fold": fold.get(i)} for i in everyone
    ], leaks


def _writer(
    folder: Path, size: int, fit: str
) -> Callable[[tuple[Case, dict[str, Any]]], dict[str, Any]]:
    """A function that writes one pair where its entry says, and returns the entry with what the manifest adds."""

    def write(planned: tuple[Case, dict[str, Any]]) -> dict[str, Any]:
        case, entry = planned
        image, mask, categories, category = _read_pair(case.item)
        for kind, picture in zip(KINDS, (image, mask * np.uint8(255), categories), strict=True):
            write_image(
                folder / entry["split"] / kind / f"{case.item.stem}.png", place(picture, size, fit)
            )
        box = asdict(fit_box(case.height, case.width, size, fit))
        return {
            "stem": case.item.stem,
            **entry,
            "source": f"images/{case.item.image_path.name}",
            "height": case.height,
            "width": case.width,
            "box": box,
            "category": category,
        }

    return write


def _fingerprint(items: list[Source]) -> dict[str, int]:
    """Number and total size in bytes of the source files: changes when files come, go or are mended."""
    paths = [
        p for item in items for p in (item.image_path, item.annotation_path, item.binary_path) if p
    ]
    return {"count": len(paths), "bytes": sum(path.stat().st_size for path in paths)}


def _settings_of(output: Path, names: Iterable[str]) -> dict[str, Any] | None:
    """The settings that an earlier, undamaged dataset was made with, or None."""
    try:
        manifest = json.loads((output / "manifest.json").read_text(encoding="utf-8"))
        items = [(output / item["split"], f"{item['stem']}.png") for item in manifest["items"]]
        if not all((folder / kind / name).is_file() for folder, name in items for kind in KINDS):
            return None
        return {name: manifest[name] for name in names}
    except (OSError, ValueError, KeyError, TypeError):
        return None
