"""Read datasets whose labels are pictures: a folder of images and one of masks, in any usual order.

- `images` and `masks` (or names like them), also inside `train`, `valid`, `test`, or inside a
  folder of each class; `train-image` and `train-mask`, as in TN3K; `images/train` and
  `masks/train`;
- images and their masks together in one folder, told apart by the names of the masks, as in BUSI.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from ovseg.core.console import map_with_progress
from ovseg.core.errors import InputError
from ovseg.data.masks import LOSSY_NOISE, binarise, read_category_map, refuse_mask
from ovseg.data.pairs import list_images, normal_stem
from ovseg.data.pictures import advise_on_size, has_suffix, is_lossy, open_picture
from ovseg.data.prepare.files import SourceFiles
from ovseg.data.prepare.sources import (
    LESION,
    SPLIT_NAMES,
    Found,
    Labels,
    Reading,
    Source,
    path_in,
    split_of_folders,
    unique_stems,
)

# Names of folders, in lower case without `-`, `_` and spaces.
IMAGE_FOLDERS = ("image", "images", "img", "imgs", "picture", "pictures", "jpegimages", "input")
MASK_FOLDERS = (
    *("mask", "masks", "label", "labels", "annotation", "annotations", "segmentation"),
    *("segmentations", "segmentationclass", "seg", "gt", "groundtruth", "target", "targets"),
)
# What masks have before or after the name of their image; a number may follow.
MASK_WORDS = "masks?|segmentation|seg|ground[-_ ]?truth|gt|labels?|annotation|lesion|roi"
NUMBER = r"(?:[-_. ]*\(?\d+\)?)?"
BEFORE_WORD = re.compile(rf"(?P<stem>.+?)[-_. ]*(?:{MASK_WORDS}){NUMBER}", re.IGNORECASE)
AFTER_WORD = re.compile(rf"(?:{MASK_WORDS})[-_. ]*(?P<stem>.+)", re.IGNORECASE)
NUMBERED = re.compile(r"(?P<stem>.+)[-_ ]\(?\d+\)?")
IMAGE_WORD = re.compile(r"(?:image|img|im)[-_. ]*(?P<after>.+)|(?P<before>.+?)[-_. ]*(?:image|img)")
MAX_CLASSES = 20  # folders of images; more are patients or examinations, not classes
# In lower case; what images show, and not whose they are.
CLASS_FOLDERS = ("benign", "malignant", "normal", "healthy", "borderline", "cancer", "cyst")
TN3K_FOLD = "tn3k-trainval-fold0.json"  # {"train": [names or numbers], "val": [...]}


@dataclass(frozen=True)
class Spot:
    """A folder of images and where their masks are: another folder, or the same one."""

    images: Path
    masks: Path
    split: str = ""
    kind: str = ""


def find_folders(files: SourceFiles, reading: Reading) -> Found:
    """The images and masks of a dataset.

    Args:
        files: of the dataset; not used where `reading` names the folders.
        reading: see there. With `categories` masks hold ids of categories.

    Raises:
        InputError: there are no such folders, or a picture's name is there twice.
    """
    if reading.images is not None and reading.masks is not None:
        found = Found(reading.images.parent)
        spots = list(_mirror(reading.images, reading.masks, ""))
    else:
        found = Found(files.root)
        spots = find_spots(files.root)
    if not spots:
        raise InputError(f"{found.root} has no folder of images beside one of masks.")
    return read_spots(found, spots, reading)


def find_spots(root: Path) -> list[Spot]:
    """Where images and masks lie in a dataset; empty where there are none."""
    return list(_walk(root, "", ""))


def has_classes(spots: list[Spot]) -> bool:
    """Whether folders tell the class of an image."""
    return 2 <= len({spot.kind for spot in spots}) <= MAX_CLASSES


def _walk(folder: Path, split: str, kind: str) -> Iterable[Spot]:
    """The spots in a folder; raises where two folders could hold the masks."""
    inner = sorted(path for path in folder.iterdir() if path.is_dir() and _is_shown(path))
    images: dict[str, list[Path]] = {}
    masks: dict[str, list[Path]] = {}
    others = []
    for path in inner:
        own_split, role = folder_role(path.name)
        if role == "images":
            images.setdefault(own_split, []).append(path)
        elif role == "masks" and _holds_pictures(path):
            masks.setdefault(own_split, []).append(path)
        elif role == "":
            others.append(path)

    for own_split in images:
        if own_split not in masks:
            continue
        for candidates in (images[own_split], masks[own_split]):
            if len(candidates) > 1:
                names = ", ".join(path.name for path in candidates)
                raise InputError(
                    f"{folder} has several folders that could be meant: {names}. Name the two "
                    "folders with --images and --masks."
                )
        yield from _mirror(images[own_split][0], masks[own_split][0], own_split or split, kind=kind)
    if images and masks:
        return

    if any(has_suffix(path) for path in folder.iterdir()):
        yield Spot(folder, folder, split, kind)
    for path in others:
        if path.name.lower() in SPLIT_NAMES:
            yield from _walk(path, SPLIT_NAMES[path.name.lower()], kind)
        else:
            yield from _walk(path, split, path.name)


def _mirror(images: Path, masks: Path, split: str, kind: str = "") -> Iterable[Spot]:
    """A folder of images and one of masks, and the folders in them that have the same names.

    Raises:
        InputError: a folder is missing.
    """
    for folder in (images, masks):
        if not folder.is_dir():
            raise InputError(f"There is no folder {folder}. Check the path.")
    if any(has_suffix(path) for path in images.iterdir()):
        yield Spot(images, masks, split, kind)
    for path in sorted(images.iterdir()):
        if not path.is_dir() or not _is_shown(path):
            continue
        own_masks = masks / path.name
        if not own_masks.is_dir():
            own_masks = masks  # masks of all folders together
        if path.name.lower() in SPLIT_NAMES:
            yield from _mirror(path, own_masks, SPLIT_NAMES[path.name.lower()], kind)
        else:
            yield from _mirror(path, own_masks, split, path.name)


def _is_shown(path: Path) -> bool:
    return not path.name.startswith(".") and path.name != "__MACOSX"


def _holds_pictures(folder: Path) -> bool:
    return any(has_suffix(path) for path in folder.rglob("*"))


def folder_role(name: str) -> tuple[str, str]:
    """The split and the role (`images`, `masks` or none) that the name of a folder says."""
    words = re.split(r"[-_ ]+", name.lower())
    split = ""
    for word in (words[0], words[-1]):
        if len(words) > 1 and word in SPLIT_NAMES:
            split = SPLIT_NAMES[word]
            words.remove(word)
            break
    rest = "".join(words)
    if rest in IMAGE_FOLDERS:
        return split, "images"
    if rest in MASK_FOLDERS:
        return split, "masks"
    return split, ""


def read_spots(found: Found, spots: list[Spot], reading: Reading) -> Found:
    """Fill `found` with the images of the spots, each with its masks united."""
    kinds = {spot.kind for spot in spots}
    with_classes = has_classes(spots) and not reading.patients
    if len(kinds) > MAX_CLASSES and not reading.patients:
        found.notes.append(
            f"{len(kinds)} folders of images are too many for classes. If each is a patient, add "
            "--groups folders."
        )
    elif with_classes and not any(kind.lower() in CLASS_FOLDERS for kind in kinds):
        found.notes.append(
            "Folders of images are taken as classes. If each is a patient, add --groups folders."
        )
    masks_of: dict[Path, list[Path]] = {}
    spot_of: dict[Path, Spot] = {}
    # Masks that several folders of images share have an image if one of these has it.
    without_image: dict[Path, int] = {}
    sharing: dict[Path, int] = {}
    for spot in spots:
        images, masks = _list_spot(spot, reading.mask_suffix)
        matched, strays = match_masks(images, masks, reading.mask_suffix)
        sharing[spot.masks] = sharing.get(spot.masks, 0) + 1
        for stray in strays:
            without_image[stray] = without_image.get(stray, 0) + 1
        for stem, path in images.items():
            masks_of[path] = matched[stem]
            spot_of[path] = spot
    for path, times in without_image.items():
        folder = path.parent
        if times == sharing[folder]:
            found.without_image.append(path_in(found.root, path))

    stems = unique_stems(found.root, list(masks_of))
    for path, own_masks in masks_of.items():
        spot = spot_of[path]
        source = Source(
            stem=stems[path],
            image_path=path,
            label_paths=tuple(own_masks),
            read_labels=partial(read_masks, path, tuple(own_masks), reading),
            kind=spot.kind if with_classes else "",
            split=spot.split or split_of_folders(found.root, path),
        )
        if own_masks:
            found.sources.append(source)
        else:
            found.without_labels.append(source)

    if reading.categories:
        paths = [path for source in found.sources for path in source.label_paths]
        largest = max(map_with_progress(_largest_id, paths, "Reading categories"), default=0)
        found.categories = [f"category {number}" for number in range(1, largest + 1)]
    elif not with_classes:
        found.categories = [LESION]
    return found


def _list_spot(spot: Spot, suffix: str | None) -> tuple[dict[str, Path], dict[str, Path]]:
    """Stem -> path of a spot's images and of its masks."""
    images = list_images(spot.images)
    if spot.masks != spot.images:
        return images, list_images(spot.masks)
    masks = {}
    for stem, path in images.items():
        others = images.keys() - {stem}
        if _owner(stem, others, suffix) is not None:
            masks[stem] = path
    return {stem: path for stem, path in images.items() if stem not in masks}, masks


def holds_masks(spot: Spot, suffix: str | None) -> bool:
    """Whether there are masks where the images are."""
    _, masks = _list_spot(spot, suffix)
    return bool(masks)


def match_masks(
    images: dict[str, Path], masks: dict[str, Path], suffix: str | None
) -> tuple[dict[str, list[Path]], list[Path]]:
    """Find the masks of each image by their names.

    Args:
        images: stem -> path.
        masks: stem -> path.
        suffix: what follows the image's stem in the stem of a mask, before a number; None takes
            an equal stem, or finds the words that masks have in their names (`MASK_WORDS`).

    Returns:
        Stem of the image -> its masks, an empty list where there is none; and the masks that
        belong to no image.
    """
    matched: dict[str, list[Path]] = {stem: [] for stem in images}
    strays = []
    by_core: dict[str, str] = {}
    for stem in images:
        core = IMAGE_WORD.fullmatch(stem)
        if core is not None:
            by_core[core["after"] or core["before"]] = stem
    numbered = images.keys() | by_core.keys()
    for stem, path in masks.items():
        owner = stem if stem in images and suffix is None else _owner(stem, numbered, suffix)
        if owner is None and suffix is None:
            number = NUMBERED.fullmatch(stem)
            if number is not None and number["stem"] in images:
                owner = number["stem"]
        if owner is None:
            strays.append(path)
        else:
            matched[by_core.get(owner, owner) if owner not in images else owner].append(path)
    return matched, strays


def _owner(stem: str, images: Iterable[str], suffix: str | None) -> str | None:
    """The one of `images` that a mask's stem names; None where it names none."""
    if suffix is None:
        patterns = [BEFORE_WORD, AFTER_WORD]
    else:
        patterns = [re.compile(rf"(?P<stem>.+){re.escape(normal_stem(suffix))}{NUMBER}")]
    for pattern in patterns:
        match = pattern.fullmatch(stem)
        if match is not None and match["stem"] in images:
            return match["stem"]
    return None


def read_masks(
    image_path: Path, paths: tuple[Path, ...], reading: Reading, height: int, width: int
) -> Labels:
    """The union of an image's masks; where categories overlap, the later file is on top.

    Raises:
        InputError: a mask can't be used, or has another size than the image.
    """
    labels = np.zeros((height, width), np.uint8)
    soft = 0
    for path in paths:
        if reading.categories:
            part = read_category_map(path, 256)
        else:
            part, between = read_two_values(path, reading.invert_masks)
            soft += between
        if part.shape != labels.shape:
            raise InputError(
                f"{image_path} and its mask {path} differ in size ({width} x {height} and "
                f"{part.shape[1]} x {part.shape[0]}). "
                f"{advise_on_size(image_path, (height, width), part.shape)}"
            )
        labels = np.where(part > 0, part, labels)
    mask = (labels > 0).astype(np.uint8)
    return Labels(mask, labels if reading.categories else None, soft=soft)


def read_two_values(path: Path, invert: bool = False) -> tuple[np.ndarray, int]:
    """A mask of any two values, uint8 (H, W) of 0 and 1; what is above their middle is lesion.

    A mask of one value is lesion everywhere or, where it is 0, nowhere.

    Args:
        path: the file.
        invert: what would be lesion is background, and the other way round.

    Returns:
        The mask, and how many of its pixels lie between the two values, as those of soft edges do.

    Raises:
        InputError: see `ovseg.data.masks.read_mask`.
    """
    picture = open_picture(path)
    grey = np.array(picture.convert("L"))
    lossy = is_lossy(picture)
    lowest = int(grey.min())
    highest = int(grey.max())
    threshold = (lowest + highest) // 2
    if lowest == highest:
        threshold = 0
    if lossy and highest <= LOSSY_NOISE:
        threshold = highest
    refuse_mask(path, picture, grey, threshold)
    between = 0
    if threshold < highest:
        between = int(np.count_nonzero((grey > lowest) & (grey < highest)))
    return binarise(grey, threshold, invert), between


def _largest_id(path: Path) -> int:
    try:
        return int(read_category_map(path, 256).max())
    except InputError:
        return 0  # the mask is named when it is read


def find_tn3k(files: SourceFiles, reading: Reading) -> Found:
    """TN3K: `trainval-image`, `trainval-mask`, `test-image`, `test-mask`.

    The first of its lists of folds, if it is there, divides trainval into train and valid.

    Raises:
        InputError: see `find_folders`; the list is no such list.
    """
    found = find_folders(files, reading)
    path = files.root / TN3K_FOLD
    if not path.is_file():
        return found
    found.read.add(path)
    lists = files.read(path)
    split_of = {}
    for name, split in (("train", "train"), ("val", "valid")):
        entries = lists.get(name) if isinstance(lists, dict) else None
        if not isinstance(entries, list):
            raise InputError(f"{path} has no list {name}. Download it again.")
        for entry in entries:
            split_of[_fold_key(str(entry))] = split
    sources = []
    for source in found.sources:
        if source.split == "trainval":
            split = split_of.get(_fold_key(source.image_path.name), "trainval")
            source = replace(source, split=split)
        sources.append(source)
    found.sources = sources
    return found


def _fold_key(name: str) -> str:
    """A file's name or number as its stem without leading zeros."""
    return Path(name).stem.lstrip("0")
