"""Examine the files of a dataset tree one by one: faults, sizes, lesions, and colour Doppler."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ovseg.core.errors import InputError, first_five
from ovseg.core.files import file_digest
from ovseg.data.colours import is_doppler, measure_colours
from ovseg.data.manifest import FILE_NAME, default_names, read_manifest
from ovseg.data.masks import (
    MaskFacts,
    alpha_problem,
    binarise,
    mask_facts,
    mask_problem,
    refuse_implausible,
)
from ovseg.data.pairs import natural_key, normal_stem
from ovseg.data.pictures import (
    SUFFIXES,
    UPRIGHT,
    advise_on_size,
    has_suffix,
    is_lossy,
    list_visible,
    open_picture,
    read_image_and_orientation,
)
from ovseg.data.prepare.duplicates import Fingerprint, crop_letterbox, fingerprint
from ovseg.data.tree import SPLITS, find_other_name

BROKEN = {  # kinds of faults; a tree with one of them cannot be trained on as it is
    "missing folder": "the layout needs images and masks of train, valid and test",
    "unreadable": "not a whole 8-bit picture",
    "image without mask": "no mask of its stem",
    "mask without image": "no image of its stem",
    "two of one stem": "unknown which one is meant",
    "sizes differ": "the picture does not lie on its image",
    "no binary mask": "many values, or none that counts as lesion",
    "bad categories": "not ids of the lesion alone",
    "implausible masks": "no mask of train has a lesion, or all of a split are lesion everywhere",
    "manifest differs": "the manifest names other images than the tree has",
}
REMARKS = {
    "empty mask": "no lesion: legal, counted",
    "full mask": "all lesion",
    "white corners": "white at all four corners: is the lesion drawn in black?",
    "soft edges": "values between black and white, which are lesion above the threshold",
    "no picture": "a file that is not used",
    "EXIF orientation": "turned as viewers show it: was the mask drawn so?",
}


@dataclass(frozen=True)
class Problem:
    """A fault or a remark.

    Attributes:
        kind: a key of `BROKEN` or `REMARKS`.
        file: relative to the tree.
        message: what was found.
    """

    kind: str
    file: str
    message: str


@dataclass
class Entry:
    """One image of the tree; what could not be read stays None.

    Attributes:
        split: `train`, `valid` or `test`.
        stem: of the image and its mask.
        image: path relative to the tree.
        mask: path relative to the tree.
        category_map: path relative to the tree.
        height: of the image, pixels.
        width: of the image, pixels.
        category: name of the lesion's category; of several, of the one with most pixels.
        lesion: share of the picture that is lesion, 0..1.
        mask_facts: what the mask tells about the masks of its split.
        brightness: mean grey level without the letterbox, 0..255.
        red: share of the pixels that are saturated red.
        blue: share of the pixels that are saturated blue.
        doppler: whether it counts as colour Doppler.
        file_sha256: digest of the file.
        pixel_sha256: digest of shape and pixels.
        usable: whether the pair can be trained on.
        fingerprint: for the comparison of images.
    """

    split: str
    stem: str
    image: str
    mask: str | None
    category_map: str | None = None
    height: int | None = None
    width: int | None = None
    category: str | None = None
    lesion: float | None = None
    brightness: float | None = None
    red: float = 0.0
    blue: float = 0.0
    doppler: bool = False
    file_sha256: str = ""
    pixel_sha256: str = ""
    usable: bool = False
    fingerprint: Fingerprint | None = field(default=None, repr=False)
    mask_facts: MaskFacts | None = field(default=None, repr=False)

    @property
    def name(self) -> str:
        return f"{self.split}/{self.stem}"


def list_tree(root: Path) -> tuple[list[Entry], list[Problem]]:
    """The images of the tree with their masks by stem, and the files that do not fit."""
    entries: list[Entry] = []
    problems: list[Problem] = []
    for split in SPLITS:
        images, image_problems = _list_folder(root, f"{split}/images")
        masks, mask_problems = _list_folder(root, f"{split}/masks")
        problems += image_problems + mask_problems
        maps: dict[str, str] = {}
        if (root / split / "categories").is_dir():
            maps, map_problems = _list_folder(root, f"{split}/categories")
            problems += map_problems
        for stem, image in images.items():
            entries.append(Entry(split, stem, image, masks.get(stem), maps.get(stem)))
            if stem not in masks:
                message = f"no {stem}.* in {split}/masks"
                problems.append(Problem("image without mask", image, message))
        for stem, mask in masks.items():
            if stem not in images:
                message = f"no {stem}.* in {split}/images"
                problems.append(Problem("mask without image", mask, message))
    return entries, problems


def _list_folder(root: Path, folder: str) -> tuple[dict[str, str], list[Problem]]:
    """The pictures of a folder, and the files that are none or a second one of their stem.

    Returns:
        Stem -> path relative to the root, in natural order; and the problems.
    """
    found: dict[str, str] = {}
    problems: list[Problem] = []
    if not (root / folder).is_dir():
        message = BROKEN["missing folder"]
        other = find_other_name(root / folder) or find_other_name((root / folder).parent)
        if other is not None:
            message = f"found {other.relative_to(root)}, which has another name"
        return found, [Problem("missing folder", folder, message)]
    # Two pictures of one stem in the order of their suffixes.
    files = sorted(
        list_visible(root / folder), key=lambda file: (natural_key(file[0].stem), file[0].suffix)
    )
    for path, is_folder in files:
        name = f"{folder}/{path.name}"
        stem = normal_stem(path.stem)
        if is_folder:
            problems.append(Problem("no picture", name, "a folder, which is not looked into"))
        elif not has_suffix(path):
            problems.append(Problem("no picture", name, f"expected {', '.join(SUFFIXES)}"))
        elif stem in found:
            message = f"{found[stem]} has the same stem"
            problems.append(Problem("two of one stem", name, message))
        else:
            found[stem] = name
    return found, problems


def compare_manifest(root: Path, entries: Sequence[Entry]) -> tuple[dict[str, Any], list[Problem]]:
    """The tree's manifest, and the images that only the manifest or only the tree has.

    Returns:
        The manifest, {} where there is none or it cannot be read; and the problems.
    """
    try:
        manifest = read_manifest(root)
    except InputError as error:
        return {}, [Problem("unreadable", FILE_NAME, str(error))]
    listed = {f"{item['split']}/{item['stem']}" for item in manifest.get("items", [])}
    if not listed:
        return manifest, []
    present = {entry.name for entry in entries}
    problems = []
    for name in sorted(listed ^ present, key=natural_key):
        message = "listed only" if name in listed else "there only"
        problems.append(Problem("manifest differs", name, message))
    return manifest, problems


def examine(
    root: Path,
    entry: Entry,
    threshold: int,
    categories: Sequence[str] | None = None,
    invert: bool = False,
) -> list[Problem]:
    """Read the files of an entry and fill in what they show.

    Args:
        root: dataset folder.
        entry: is filled.
        threshold: grey values of masks above it are lesion.
        categories: names of the categories 1, 2, ...; None where nobody has named them.
        invert: see `ovseg.data.masks.read_mask`.

    Returns:
        What is wrong with the files.
    """
    problems = _examine_image(root, entry)
    problems += _examine_mask(root, entry, threshold, invert)
    problems += _examine_categories(root, entry, categories or default_names(255))
    broken = any(problem.kind in BROKEN for problem in problems)
    entry.usable = entry.lesion is not None and not broken
    return problems


def _examine_image(root: Path, entry: Entry) -> list[Problem]:
    path = root / entry.image
    try:
        image, orientation = read_image_and_orientation(path)
        entry.file_sha256 = file_digest(path)
    except (InputError, OSError) as error:
        return [Problem("unreadable", entry.image, str(error))]
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    shape = repr(image.shape).encode()
    entry.height, entry.width = image.shape[:2]
    entry.pixel_sha256 = hashlib.sha256(shape + image.tobytes()).hexdigest()
    entry.brightness = float(crop_letterbox(grey).mean())
    entry.red, entry.blue = measure_colours(image)
    entry.doppler = is_doppler(entry.red, entry.blue)
    entry.fingerprint = fingerprint(image)
    if orientation == UPRIGHT:
        return []
    return [Problem("EXIF orientation", entry.image, f"orientation {orientation}")]


def _examine_mask(root: Path, entry: Entry, threshold: int, invert: bool) -> list[Problem]:
    if entry.mask is None:
        return []
    try:
        picture = open_picture(root / entry.mask)
    except InputError as error:
        return [Problem("unreadable", entry.mask, str(error))]
    grey = np.array(picture.convert("L"))
    lossy = is_lossy(picture)
    message = alpha_problem(picture, grey) or mask_problem(grey, threshold, lossy)
    if message:
        return [Problem("no binary mask", entry.mask, message)]
    height, width = grey.shape
    if entry.height and entry.width and (height, width) != (entry.height, entry.width):
        advice = advise_on_size(root / entry.image, (entry.height, entry.width), (height, width))
        message = f"{width} x {height}, its image {entry.width} x {entry.height}. {advice}"
        return [Problem("sizes differ", entry.mask, message)]

    entry.lesion = float(binarise(grey, threshold, invert).mean())
    facts = mask_facts(grey, threshold, invert, lossy)
    entry.mask_facts = facts
    kinds = []
    if not facts.lesion:
        kinds.append("empty mask")
    if facts.full:
        kinds.append("full mask")
    if facts.white_corners and not invert:
        kinds.append("white corners")
    problems = [Problem(kind, entry.mask, REMARKS[kind]) for kind in kinds]
    if facts.soft:
        problems.append(Problem("soft edges", entry.mask, f"{facts.soft:,} pixels"))
    return problems


def judge_masks(entries: Sequence[Entry], threshold: int) -> list[Problem]:
    """The splits whose masks can't be meant, see `refuse_implausible`; each mask may be legal."""
    problems = []
    for split in SPLITS:
        facts = []
        for entry in entries:
            if entry.split == split and entry.mask_facts is not None:
                facts.append(entry.mask_facts)
        try:
            refuse_implausible(split, facts, threshold, needs_lesion=split == "train")
        except InputError as error:
            problems.append(Problem("implausible masks", f"{split}/masks", str(error)))
    return problems


def _examine_categories(root: Path, entry: Entry, categories: Sequence[str]) -> list[Problem]:
    """Take the category from the map of ids, if there is one."""
    name = entry.category_map
    if name is None:
        return []
    try:
        ids = np.array(open_picture(root / name))
    except InputError as error:
        return [Problem("unreadable", name, str(error))]
    if entry.height and ids.shape[:2] != (entry.height, entry.width):
        message = f"{ids.shape[1]} x {ids.shape[0]}, its image differs"
        return [Problem("sizes differ", name, message)]

    if ids.ndim != 2:
        message = "has several channels, expected one of ids"
        return [Problem("bad categories", name, message)]
    counts = np.bincount(ids[ids > 0], minlength=256)
    values = np.flatnonzero(counts).tolist()
    if max(values, default=0) > len(categories):
        message = f"holds the ids {first_five(values)}, expected 0..{len(categories)}"
        return [Problem("bad categories", name, message)]
    if entry.lesion is not None and bool(values) != (entry.lesion > 0):
        message = "its mask is empty and it is not, or the reverse"
        return [Problem("bad categories", name, message)]
    if values:
        entry.category = categories[int(counts.argmax()) - 1]
    return []
