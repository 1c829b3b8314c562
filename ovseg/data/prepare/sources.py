"""What a layout's reader hands over: the images of a dataset, and how their labels are read."""

import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ovseg.core.errors import InputError, first_five
from ovseg.data.pairs import natural_key, normal_stem
from ovseg.data.pictures import CLUTTER, has_suffix

UNMATCHED = {
    "error": "list the images without labels and stop",
    "skip": "leave them out",
    "empty": "they show no lesion",
}
# MMOTU's downloads have the same folders, but other annotations.
MMOTU_KINDS = {
    "b-mode": "OTU_2d: the colours of annotations are eight categories",
    "ceus": "OTU_3d, with contrast agent: every colour of an annotation is lesion",
}
LESION = "lesion"  # the one category of a dataset that names none
# Names of folders, in lower case -> split that they hold. `trainval` is divided into train and
# valid.
SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "trainval": "trainval",
    "val": "valid",
    "valid": "valid",
    "validation": "valid",
    "test": "test",
    "testing": "test",
}


@dataclass(frozen=True)
class Labels:
    """The labels of one image.

    Attributes:
        mask: uint8 (H, W), 1 where there is lesion.
        categories: uint8 (H, W), ids of categories; None where the lesion has that of its image.
        outside: number of an outline's points that lie outside of the picture.
        soft: number of pixels of a mask between its darkest and its brightest value.
    """

    mask: np.ndarray
    categories: np.ndarray | None = None
    outside: int = 0
    soft: int = 0


@dataclass(frozen=True)
class Source:
    """One image and how to read its labels.

    Attributes:
        stem: what its files will be called.
        image_path: the image.
        label_paths: the files that its labels come from.
        read_labels: the labels of a picture of (height, width) pixels; raises InputError.
        kind: the class of the image, the name of its folder; empty where folders say none.
        split: `train`, `trainval`, `valid` or `test` by the dataset's own split; else empty.
        patient: patient or examination, where the dataset says so; else empty.
    """

    stem: str
    image_path: Path
    label_paths: tuple[Path, ...]
    read_labels: Callable[[int, int], Labels]
    kind: str = ""
    split: str = ""
    patient: str = ""


@dataclass
class Found:
    """The images that a layout's reader found.

    Attributes:
        root: the folder to which names of files are relative.
        sources: images with labels.
        without_labels: images of whose labels there is no file or entry; read as empty.
        without_image: names of masks and entries whose image is not there.
        failures: a line for each file that can't be used.
        notes: lines for the user.
        categories: names of the ids 1, 2, ...; empty where they are the classes of the images.
        read: files that were read and belong to no image of the above: lists of classes and splits,
            and what can't be used.
    """

    root: Path
    sources: list[Source] = field(default_factory=list)
    without_labels: list[Source] = field(default_factory=list)
    without_image: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    categories: list[str] = field(default_factory=list)
    read: set[Path] = field(default_factory=set)


@dataclass(frozen=True)
class Reading:
    """How labels are to be read.

    Attributes:
        images: folder of images, where it is named by itself, with `masks` or for annotation files
            elsewhere.
        masks: folder of masks, where it is named by itself.
        mask_suffix: what follows an image's stem in the names of its masks; None finds it by rule.
        labels: names of the labels that are lesion; empty for all.
        categories: keep each label as a category.
        patients: folders of images are patients, not classes.
        invert_masks: the darker of a mask's two values is lesion.
        kind: of the pictures of MMOTU, see `MMOTU_KINDS`.
    """

    images: Path | None = None
    masks: Path | None = None
    mask_suffix: str | None = None
    labels: tuple[str, ...] = ()
    categories: bool = False
    patients: bool = False
    invert_masks: bool = False
    kind: str = "b-mode"


def no_lesion(height: int, width: int) -> Labels:
    """The labels of an image without lesion."""
    return Labels(np.zeros((height, width), np.uint8))


def settle_unmatched(found: Found, unmatched: str) -> tuple[list[Source], dict[str, list[str]]]:
    """The images to prepare, and the names of those that are left out, by the reason.

    Args:
        found: what the reader found.
        unmatched: a name in `UNMATCHED`.

    Raises:
        InputError: there are images without labels, or labels without image, and `unmatched` does
            not say what to do.
    """
    images = [path_in(found.root, source.image_path) for source in found.without_labels]
    problems = []
    if images and unmatched == "error":
        problems.append(
            f"{len(images)} of {len(images) + len(found.sources)} images in {found.root} have no "
            f"mask or annotation: {first_five(images)}"
        )
    if found.without_image and unmatched != "skip":
        problems.append(
            f"{len(found.without_image)} masks or annotations in {found.root} have no image: "
            f"{first_five(found.without_image)}"
        )
    if problems:
        raise InputError(
            f"{'; '.join(problems)}. Add what is missing, say how masks are named (--mask_suffix), "
            "leave these out with --unmatched skip, or take images without a mask as images "
            "without lesion: --unmatched empty."
        )

    if unmatched == "empty":
        sources = found.sources + found.without_labels
        return sorted(sources, key=lambda source: natural_key(source.stem)), {}
    return found.sources, {"no mask or annotation": images, "no image": found.without_image}


def list_unused(found: Found, folders: Iterable[Path]) -> dict[str, list[str]]:
    """The files in some folders that no reader used, by the reason.

    Args:
        found: what the reader found there.
        folders: the folder of the dataset, or those of its images and masks.
    """
    used = set(found.read)
    for source in found.sources + found.without_labels:
        used.update((source.image_path, *source.label_paths))
    used.update(found.root / name for name in found.without_image)

    unused: dict[str, list[str]] = {"hidden": [], "no picture": [], "not used": []}
    for folder in folders:
        for path in sorted(folder.rglob("*"), key=lambda path: natural_key(str(path))):
            if path in used or path.is_dir():
                continue
            parts = path.relative_to(folder).parts
            if any(part.startswith(".") or part.lower() in CLUTTER for part in parts):
                reason = "hidden"
            elif has_suffix(path):
                reason = "not used"
            else:
                reason = "no picture"
            unused[reason].append(path_in(found.root, path))
    return unused


def unique_stems(root: Path, paths: list[Path]) -> dict[Path, str]:
    """A stem for each image: its own, or with its folders before it where two share one."""
    stems = {path: normal_stem(path.stem) for path in paths}
    if len(set(stems.values())) == len(paths):
        return stems
    named = {}
    for path in paths:
        folders = path.relative_to(root).parent.parts
        named[path] = normal_stem("_".join([*folders, path.stem]))
    if len(set(named.values())) < len(paths):
        counts: dict[str, list[Path]] = {}
        for path, stem in named.items():
            counts.setdefault(stem, []).append(path)
        twice = [str(path) for group in counts.values() if len(group) > 1 for path in group]
        raise InputError(f"These images would have one name: {first_five(twice)}. Rename them.")
    return named


def split_of_name(name: str) -> str:
    """The split that a folder or file is named after, as `train2017`; empty where there is none."""
    for word in re.findall("[a-z]+", name.lower()):
        if word in SPLIT_NAMES:
            return SPLIT_NAMES[word]
    return ""


def split_of_folders(root: Path, path: Path) -> str:
    """The split that a folder on the way to a file is named after; empty where none is."""
    for name in path.relative_to(root).parent.parts:
        split = split_of_name(name)
        if split:
            return split
    return ""


def path_in(root: Path, path: Path) -> str:
    """A path as it reads from the dataset's folder, with `/`."""
    if path.is_relative_to(root):
        return path.relative_to(root).as_posix()
    return path.as_posix()


class PictureNames:
    """Finds the pictures that lists and annotation files name.

    Args:
        paths: of all pictures.
    """

    def __init__(self, paths: Iterable[Path]):
        self._named: dict[str, list[Path]] = {}
        for path in paths:
            for name in {normal_stem(path.name), normal_stem(path.stem)}:
                self._named.setdefault(name, []).append(path)

    def find(self, name: str) -> list[Path]:
        """The pictures that could be meant.

        Args:
            name: name or stem of a file; folders may come first, and narrow the choice where they
                fit.
        """
        parts = [normal_stem(part) for part in re.split(r"[\\/]+", name) if part.strip(".")]
        if not parts:
            return []
        found = []
        for path in self._named.get(parts[-1], []):
            folders = [normal_stem(part) for part in Path(os.path.abspath(path)).parts[:-1]]
            if folders[len(folders) - len(parts) + 1 :] == parts[:-1]:
                found.append(path)
        return found or self._named.get(parts[-1], [])
