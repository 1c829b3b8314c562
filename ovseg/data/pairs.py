"""Find, read and verify image/mask pairs. Nothing else in the project opens a picture."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ovseg.core.console import map_with_progress
from ovseg.core.errors import InputError, first_five
from ovseg.data.geometry import Box, cut

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff")
JPEG_FORMATS = ("JPEG", "MPO")  # of Pillow, whatever the suffix of the file
EIGHT_BIT_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr")  # of Pillow
JPEG_NOISE = 32  # grey levels that compression may leave in the black of a JPEG mask
# Of a lesion of one value compression leaves most (the share) within so many grey levels of its
# brightest tenth. In 200 masks of OTU_2d it leaves 0.91 or more even at JPEG quality 10; the lower
# limit is for masks that were resized too. In 200 images half have less than 0.44.
BLURRED_EDGE = 64
SHARP_SHARE = 0.6


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


def list_images(folder: Path) -> dict[str, Path]:
    """Stem -> path of every picture in a folder, in natural order; hidden files are left out.

    Raises:
        InputError: no such folder, no picture in it, or two pictures of one stem.
    """
    folder = Path(folder)
    if folder.is_file():
        raise InputError(f"{folder} is a file, expected a folder of pictures. Name its folder.")
    if not folder.is_dir():
        raise InputError(f"There is no folder {folder}. Check the path.")

    paths = []
    for path in sorted(folder.iterdir()):  # so that 1 and 01, of one natural key, have an order
        hidden = path.name.startswith(".")
        if path.suffix.lower() in SUFFIXES and not hidden:
            paths.append(path)
    if not paths:
        raise InputError(
            f"{folder} holds no picture ({', '.join(SUFFIXES)}). Folders inside it are not read."
        )

    counts = Counter(path.stem for path in paths)
    repeated = [stem for stem, count in counts.items() if count > 1]
    if repeated:
        repeated.sort(key=natural_key)
        raise InputError(
            f"{len(repeated)} stems stand for two pictures in {folder}: {first_five(repeated)}. "
            "Keep one of each."
        )

    paths.sort(key=lambda path: natural_key(path.stem))
    return {path.stem: path for path in paths}


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
    excluded = {str(stem) for stem in exclude}

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


def open_picture(path: Path) -> Image.Image:
    """Decode a picture completely.

    Raises:
        InputError: unreadable, truncated, several frames, or more than 8 bits a channel.
    """
    try:
        with Image.open(path) as picture:
            picture.load()
            frames = getattr(picture, "n_frames", 1)
    # Pillow raises a SyntaxError for a broken PNG.
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"{path} cannot be read ({error}). Replace or remove the file.") from None

    if frames > 1:
        raise InputError(
            f"{path} has {frames} frames, expected 1. Save the frame you mean as its own file."
        )
    check_eight_bits(picture, str(path))
    return picture


def check_eight_bits(picture: Image.Image, name: str) -> None:
    """Raise InputError, which begins with `name`, for a picture of more than 8 bits a channel."""
    if picture.mode not in EIGHT_BIT_MODES:
        raise InputError(
            f"{name} has mode {picture.mode}, expected 8 bits a channel. Convert it to 8 bits."
        )


def read_image(path: Path) -> np.ndarray:
    """Read a picture as RGB, uint8 (H, W, 3); its EXIF orientation is ignored.

    Raises:
        InputError: see `open_picture`.
    """
    return np.array(open_picture(path).convert("RGB"))


def read_mask(path: Path, threshold: int = 127) -> np.ndarray:
    """Read a binary mask, uint8 (H, W) of 0 and 1; grey values above `threshold` are lesion.

    Raises:
        InputError: unreadable, or its grey values are not those of a binary mask (see
            `mask_problem`).
    """
    picture = open_picture(path)
    grey = np.array(picture.convert("L"))
    problem = mask_problem(grey, threshold, lossy=is_jpeg(picture))
    if problem:
        raise InputError(f"{path} {problem}")
    return (grey > threshold).astype(np.uint8)


def read_category_map(path: Path, classes: int) -> np.ndarray:
    """Read a category map, uint8 (H, W) of ids 0 (background) to `classes` - 1.

    Raises:
        InputError: unreadable, several channels, a JPEG (compression changes ids), or an id out of
            range.
    """
    picture = open_picture(path)
    ids = np.array(picture)
    if ids.ndim != 2 or is_jpeg(picture):
        raise InputError(
            f"{path} is {picture.format} of mode {picture.mode}, expected a PNG with one channel "
            "of category ids. Prepare the dataset again."
        )

    unknown = np.unique(ids[ids >= classes])
    if len(unknown):
        raise InputError(
            f"{path} holds the ids {first_five(unknown)}, expected 0 (background) to "
            f"{classes - 1}. Prepare the dataset again."
        )
    return ids.astype(np.uint8)


def read_labels(path: Path, threshold: int, classes: int) -> np.ndarray:
    """Read a mask for one class (`read_mask`), a category map for more (`read_category_map`)."""
    if classes == 1:
        return read_mask(path, threshold)
    return read_category_map(path, classes)


def mask_problem(grey: np.ndarray, threshold: int, lossy: bool) -> str:
    """Why grey values are not a binary mask.

    A lossless mask has at most two values. A JPEG mask is blurred by compression: most of what is
    not black must still be near its brightest value.

    Args:
        grey: uint8 (H, W).
        threshold: grey values above it are lesion.
        lossy: the mask was a JPEG.

    Returns:
        What is wrong and what to do, to follow the name of the file; empty for a binary mask.
    """
    values = np.unique(grey)
    largest = int(values.max())

    if lossy and not _is_blurred_binary(grey):
        return (
            f"is a JPEG whose grey values ({len(values)}) are not those of two after compression, "
            "expected a binary mask. Save the lesion as one value on black, as PNG."
        )
    if not lossy and len(values) > 2:
        return (
            f"holds {len(values)} grey values ({first_five(values)}), expected a binary mask of "
            "two. Save the lesion as one value on black."
        )

    if len(values) == 2 and values.min() > threshold:
        return (
            f"has two values above the threshold {threshold} ({first_five(values)}), so all of it "
            "would be lesion."
        )

    noise = JPEG_NOISE if lossy else 0
    if noise < largest <= threshold:
        return (
            f"has no value above the threshold {threshold} (its largest is {largest}), so its "
            f"lesion would be lost. Set the mask threshold to {largest // 2} (data.mask_threshold "
            "in train, --mask_threshold in other commands)."
        )
    return ""


def _is_blurred_binary(grey: np.ndarray) -> bool:
    """Whether grey values, uint8 (H, W), can be those of a binary mask after JPEG compression."""
    bright = grey[grey > JPEG_NOISE]
    if len(bright) == 0:
        return True
    near_brightest = bright > np.percentile(bright, 90) - BLURRED_EDGE
    return bool(np.mean(near_brightest) >= SHARP_SHARE)


def is_jpeg(picture: Image.Image) -> bool:
    """Whether a decoded file was a JPEG, whose compression changes values."""
    return picture.format in JPEG_FORMATS


def read_pair(pair: Pair, threshold: int = 127, classes: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Image and labels of a pair, cut to its box where it has one.

    Args:
        pair: a pair with a mask.
        threshold: see `read_mask`.
        classes: 1 for masks, more for category maps.

    Returns:
        Image, uint8 (H, W, 3), and mask or category map, uint8 (H, W).

    Raises:
        InputError: a file can't be used, the two differ in size, or the box lies outside of them.
        ValueError: the pair has no mask.
    """
    if pair.mask_path is None:
        raise ValueError(f"{pair.image_path} has no mask.")

    image = read_image(pair.image_path)
    labels = read_labels(pair.mask_path, threshold, classes)
    height, width = labels.shape
    if image.shape[:2] != labels.shape:
        raise InputError(
            f"{pair.image_path} and its mask {pair.mask_path} differ in size "
            f"({image.shape[1]} x {image.shape[0]} and {width} x {height}). Export them again."
        )

    box = pair.box
    if box is None:
        return image, labels

    if box.bottom > height or box.right > width:
        raise InputError(
            f"{pair.image_path} is {width} x {height} pixels, but manifest.json has its picture in "
            f"{box}. Prepare the dataset again."
        )
    return cut(image, box), cut(labels, box)


def verify_pairs(
    pairs: Sequence[Pair],
    threshold: int = 127,
    classes: int = 1,
    keep: Callable[[int, np.ndarray, np.ndarray], None] | None = None,
) -> list[str]:
    """Decode every pair before any work starts, and list those whose mask is empty.

    Args:
        pairs: what to read.
        threshold: see `read_mask`.
        classes: 1 for masks, more for category maps.
        keep: gets the index, image and labels of every good pair, in several threads.

    Returns:
        Stems of the pairs whose mask is empty: legal, to be counted and reported.

    Raises:
        InputError: all pairs that can't be used, the first five with their reason.
    """

    def check(index: int) -> tuple[str, bool]:
        """What is wrong with a pair, if anything, and whether its mask is empty."""
        try:
            image, labels = read_pair(pairs[index], threshold, classes)
        except InputError as error:
            return str(error), False
        if keep is not None:
            keep(index, image, labels)
        return "", not labels.any()

    results = map_with_progress(check, range(len(pairs)), "Verifying pairs")

    problems = [problem for problem, _ in results if problem]
    if len(problems) == 1:
        raise InputError(problems[0])
    if problems:
        raise InputError(
            f"{len(problems)} of {len(pairs)} pairs cannot be used: {first_five(problems)}"
        )

    empty = []
    for pair, (_, is_empty) in zip(pairs, results, strict=True):
        if is_empty:
            empty.append(pair.stem)
    return empty
