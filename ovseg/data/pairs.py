"""Match images and masks by stem, read and verify them."""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ovseg.core.console import map_with_progress
from ovseg.core.errors import InputError, first_five, join_problems
from ovseg.data.boxes import Box, cut
from ovseg.data.masks import MaskFacts, read_labels_with_facts
from ovseg.data.pictures import (
    SUFFIXES,
    advise_on_size,
    describe_left_out,
    list_pictures,
    read_image,
    stem_of,
)


@dataclass(frozen=True)
class Pair:
    """One image and its mask (or category map), matched by stem.

    Attributes:
        stem: name of the files without suffix.
        image_path: the image.
        mask_path: the mask; None for an image that is only shown.
        box: what to cut out of both files, to leave out a black border; None takes them whole.
    """

    stem: str
    image_path: Path
    mask_path: Path | None
    box: Box | None = None


def natural_key(stem: str) -> list[tuple[bool, int | str]]:
    """Sort key that puts 2 before 10, and numbers before letters."""
    key: list[tuple[bool, int | str]] = []
    for part in re.findall(r"\d+|\D+", stem):
        if part.isdecimal():
            key.append((False, int(part)))
        else:
            key.append((True, part))
    return key


def normal_stem(stem: str) -> str:
    """A stem, or another part of a path, with composed letters (NFC).

    macOS writes the same name as letters and accents.
    """
    return unicodedata.normalize("NFC", stem)


def list_images(folder: Path, dicom: bool = False) -> dict[str, Path]:
    """Stem -> path of every picture in a folder, in natural order; hidden files are left out.

    Stems are `normal_stem`s.

    Args:
        folder: of pictures.
        dicom: see `ovseg.data.pictures.list_pictures`.

    Raises:
        InputError: no such folder, no picture in it, or two pictures of one stem.
    """
    folder = Path(folder)
    if folder.is_file():
        raise InputError(f"{folder} is a file, expected a folder of pictures. Name its folder.")
    if not folder.is_dir():
        raise InputError(f"There is no folder {folder}. Check the path.")

    paths = list_pictures(folder, dicom)
    if not paths:
        kinds = (*SUFFIXES, "DICOM") if dicom else SUFFIXES
        raise InputError(
            f"{folder} holds no picture ({', '.join(kinds)}). Folders inside it are not read. "
            f"{describe_left_out(folder, dicom=dicom)}"
        )

    counts = Counter(normal_stem(stem_of(path)) for path in paths)
    repeated = [stem for stem, count in counts.items() if count > 1]
    if repeated:
        repeated.sort(key=natural_key)
        raise InputError(
            f"{len(repeated)} stems stand for two pictures in {folder}: {first_five(repeated)}. "
            "Keep one of each."
        )

    stems = {normal_stem(stem_of(path)): path for path in paths}
    return {stem: stems[stem] for stem in sorted(stems, key=natural_key)}


def find_pairs(images_dir: Path, masks_dir: Path, exclude: Iterable[object] = ()) -> list[Pair]:
    """Match images and masks by stem, in natural order of the stems.

    Args:
        images_dir: folder of images.
        masks_dir: folder of masks.
        exclude: stems to leave out, where they are there; numbers are taken as text.

    Raises:
        InputError: a folder is missing or empty, some stems have no partner, or no pair is left.
    """
    images = list_images(images_dir)
    masks = list_images(masks_dir)
    excluded = {normal_stem(str(stem)) for stem in exclude}

    wanted_images = [stem for stem in images if stem not in excluded]
    without_mask = [stem for stem in wanted_images if stem not in masks]
    if without_mask:
        raise InputError(
            f"{len(without_mask)} of {len(images)} images in {images_dir} have no mask of the same "
            f"stem in {masks_dir}: {first_five(without_mask)}. Add the masks or list the stems "
            "under data.exclude."
        )

    wanted_masks = [stem for stem in masks if stem not in excluded]
    without_image = [stem for stem in wanted_masks if stem not in images]
    if without_image:
        raise InputError(
            f"{len(without_image)} of {len(masks)} masks in {masks_dir} have no image of the same "
            f"stem in {images_dir}: {first_five(without_image)}. Add the images or list the stems "
            "under data.exclude."
        )

    if not wanted_images:
        raise InputError(f"data.exclude leaves no pair in {images_dir}.")
    return [Pair(stem, images[stem], masks[stem]) for stem in wanted_images]


def read_pair(
    pair: Pair, threshold: int = 127, classes: int = 1, invert: bool = False, blur: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Image and labels of a pair, cut to its box where it has one.

    Args:
        pair: a pair with a mask.
        threshold: see `ovseg.data.masks.read_mask`.
        classes: 1 for masks, more for category maps.
        invert: see `ovseg.data.masks.read_mask`.
        blur: see `ovseg.data.masks.binarise`.

    Returns:
        Image, uint8 (H, W, 3), and mask or category map, uint8 (H, W).

    Raises:
        InputError: a file can't be used, the two differ in size, or the box lies outside of them.
        ValueError: the pair has no mask.
    """
    image, labels, _ = _read_with_facts(pair, threshold, classes, invert, blur)
    return image, labels


def _read_with_facts(
    pair: Pair, threshold: int, classes: int, invert: bool, blur: int
) -> tuple[np.ndarray, np.ndarray, MaskFacts]:
    """`read_pair`, and what the mask tells about its split."""
    if pair.mask_path is None:
        raise ValueError(f"{pair.image_path} has no mask.")

    image = read_image(pair.image_path)
    labels, facts = read_labels_with_facts(pair.mask_path, threshold, classes, invert, blur)
    height, width = labels.shape
    if image.shape[:2] != labels.shape:
        raise InputError(
            f"{pair.image_path} and its mask {pair.mask_path} differ in size "
            f"({image.shape[1]} x {image.shape[0]} and {width} x {height}). "
            f"{advise_on_size(pair.image_path, image.shape[:2], labels.shape)}"
        )

    box = pair.box
    if box is None:
        return image, labels, facts

    if box.bottom > height or box.right > width:
        raise InputError(
            f"{pair.image_path} is {width} x {height} pixels, but manifest.json has its picture in "
            f"{box}. Prepare the dataset again."
        )
    return cut(image, box), cut(labels, box), facts


def verify_pairs(
    pairs: Sequence[Pair],
    threshold: int = 127,
    classes: int = 1,
    invert: bool = False,
    blur: int = 0,
    keep: Callable[[int, np.ndarray, np.ndarray], None] | None = None,
) -> list[MaskFacts]:
    """Decode every pair before any work starts.

    Args:
        pairs: what to read.
        threshold: see `ovseg.data.masks.read_mask`.
        classes: 1 for masks, more for category maps.
        invert: see `ovseg.data.masks.read_mask`.
        blur: see `ovseg.data.masks.binarise`.
        keep: gets the index, image and labels of every good pair, in several threads.

    Returns:
        What the mask of each pair tells about the masks of its split.

    Raises:
        InputError: all pairs that can't be used, the first five with their reason.
    """

    def check(index: int) -> MaskFacts | str:
        """The facts of a mask, or what is wrong with the pair."""
        try:
            image, labels, facts = _read_with_facts(pairs[index], threshold, classes, invert, blur)
        except InputError as error:
            return str(error)
        if keep is not None:
            keep(index, image, labels)
        return facts

    results = map_with_progress(check, range(len(pairs)), "Verifying pairs")

    facts = []
    problems = []
    for result in results:
        if isinstance(result, str):
            problems.append(result)
        else:
            facts.append(result)
    if len(problems) == 1:
        raise InputError(problems[0])
    if problems:
        raise InputError(
            f"{len(problems)} of {len(pairs)} pairs cannot be used: {join_problems(problems)}"
        )
    return facts
