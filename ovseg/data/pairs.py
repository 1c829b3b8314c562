"""Find, read and verify image/mask pairs. Nothing else in the project opens a picture."""

import re
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ovseg.core.console import progress_bar
from ovseg.core.errors import InputError, first_five
from ovseg.data.geometry import Box, cut

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff")


@dataclass(frozen=True)
class Pair:
    """One image and its mask (or category map), matched by stem.

    Attributes:
        stem: name of the files without suffix.
        image_path: the image.
        mask_path: the mask; None for a picture that is only shown.
        box: the part of both files that holds the picture, where a black border around it is to be left out.
    """

    stem: str
    image_path: Path
    mask_path: Path | None
    box: Box | None = None


def natural_key(stem: str) -> list[tuple[bool, int | str]]:
    """Sort key that puts 2 before 10."""
    return [
        (not part.isdecimal(), int(part) if part.isdecimal() else part)
        for part in re.findall(r"\d+|\D+", stem)
    ]


def list_images(folder: Path) -> dict[str, Path]:
    """Stem -> path of every picture in a folder, in natural order.

    Raises:
        InputError: no such folder, no picture in it, or two pictures of one stem.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"There is no folder {folder}. Check the path.")
    paths = [
        p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith(".")
    ]
    by_stem = {path.stem: path for path in sorted(paths, key=lambda p: natural_key(p.stem))}
    if not paths:
        raise InputError(f"{folder} holds no picture ({', '.join(SUFFIXES)}).")
    if len(by_stem) < len(paths):
        twice = sorted({p.stem for p in paths if p not in by_stem.values()}, key=natural_key)
        raise InputError(
            f"{len(twice)} stems stand for two pictures in {folder}: {first_five(twice)}. Keep one of each."
        )
    return by_stem


def find_pairs(images_dir: Path, masks_dir: Path, exclude: Iterable[str] = ()) -> list[Pair]:
    """Match images and masks by stem, in natural order of the stems.

    Args:
        images_dir: folder of images.
        masks_dir: folder of masks.
        exclude: stems to leave out, where they are there.

    Raises:
        InputError: a folder is missing or empty, or some stems have no partner.
    """
    images, masks, excluded = (
        list_images(images_dir),
        list_images(masks_dir),
        set(map(str, exclude)),
    )
    for name, here, there, folder in [
        ("images", images, masks, masks_dir),
        ("masks", masks, images, images_dir),
    ]:
        alone = [stem for stem in here if stem not in there and stem not in excluded]
        if alone:
            other = "mask" if name == "images" else "image"
            raise InputError(
                f"{len(alone)} of {len(here)} {name} in {here[alone[0]].parent} have no {other} of the same stem in "
                f"{folder}: {first_five(alone)}. Add the {other}s or list the stems under data.exclude."
            )
    pairs = [Pair(stem, images[stem], masks[stem]) for stem in images if stem not in excluded]
    if not pairs:
        raise InputError(f"data.exclude leaves no pair in {images_dir}.")
    return pairs


def open_picture(path: Path) -> Image.Image:
    """Decode a picture completely.

    Raises:
        InputError: unreadable, truncated, several frames, or more than 8 bits a channel.
    """
    try:
        with Image.open(path) as picture:
            picture.load()
            frames = getattr(picture, "n_frames", 1)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"{path} cannot be read ({error}). Replace or remove the file.") from None
    if frames > 1:
        raise InputError(
            f"{path} has {frames} frames, expected 1. Save the frame you mean as its own file."
        )
    if picture.mode not in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"):
        raise InputError(
            f"{path} has mode {picture.mode}, expected 8 bits a channel. Convert it to 8 bits."
        )
    return picture


def read_image(path: Path) -> np.ndarray:
    """Read a picture as RGB, uint8 (H, W, 3), without its EXIF orientation; raises as `open_picture`."""
    return np.array(open_picture(path).convert("RGB"))


def read_mask(path: Path, threshold: int = 127) -> np.ndarray:
    """Read a binary mask, uint8 (H, W) of 0 and 1; grey values above `threshold` are lesion.

    Raises:
        InputError: unreadable, or its grey values are not those of a binary mask (see `mask_problem`).
    """
    grey = np.array(open_picture(path).convert("L"))
    problem = mask_problem(grey, threshold, lossy=Path(path).suffix.lower() in (".jpg", ".jpeg"))
    if problem:
        raise InputError(f"{path} {problem}")
    return (grey > threshold).astype(np.uint8)


def read_category_map(path: Path, classes: int) -> np.ndarray:
    """Read a category map, uint8 (H, W) of ids 0 (background) to `classes` - 1.

    Raises:
        InputError: unreadable, several channels, a JPEG (compression changes ids), or an id out of range.
    """
    picture = open_picture(path)
    ids = np.array(picture)
    if ids.ndim != 2 or Path(path).suffix.lower() in (".jpg", ".jpeg"):
        raise InputError(
            f"{path} is {picture.format} of mode {picture.mode}, expected a PNG with one channel of category ids. "
            "Prepare the dataset again."
        )
    strange = np.unique(ids[ids >= classes])
    if len(strange):
        raise InputError(
            f"{path} holds the ids {first_five(strange)}, expected 0 (background) to {classes - 1}. "
            "Prepare the dataset again."
        )
    return ids.astype(np.uint8)


def read_labels(path: Path, threshold: int, classes: int) -> np.ndarray:
    """A pair's mask for one class (see `read_mask`), or its category map for more (see `read_category_map`)."""
    return read_mask(path, threshold) if classes == 1 else read_category_map(path, classes)


def mask_problem(grey: np.ndarray, threshold: int, lossy: bool) -> str:
    """Why grey values, uint8 (H, W), are not a binary mask; empty where they are.

    A lossless mask has at most two values. A JPEG mask is blurred by compression: most of what is not black must still
    be near its brightest value.
    """
    values = np.unique(grey)
    bright = grey[grey > 32]
    spread = lossy and len(bright) and np.mean(bright > np.percentile(bright, 90) - 64) < 0.6
    if spread or (not lossy and len(values) > 2):
        return (
            f"holds {len(values)} grey values ({first_five(values)}), expected a binary mask of two. "
            "Save the lesion as one value on black."
        )
    if len(values) == 2 and values.min() > threshold:
        return f"has two values above the threshold {threshold} ({first_five(values)}), so all of it would be lesion."
    noise = 32 if lossy else 0
    if values.max() > noise and values.max() <= threshold:
        return (
            f"has no value above the threshold {threshold} (its largest is {values.max()}), so its lesion would be "
            f"lost. Set data.mask_threshold to {values.max() // 2}."
        )
    return ""


def read_pair(pair: Pair, threshold: int = 127, classes: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Image (H, W, 3) and labels (H, W) of a pair, cut to its box where it has one.

    Raises:
        InputError: a file can't be used, the two differ in size, or the box lies outside of them.
    """
    image, mask = read_image(pair.image_path), read_labels(pair.mask_path, threshold, classes)
    if image.shape[:2] != mask.shape:
        sizes = f"{image.shape[1]} x {image.shape[0]} and {mask.shape[1]} x {mask.shape[0]}"
        raise InputError(
            f"{pair.image_path} and its mask {pair.mask_path} differ in size ({sizes}). Export them again."
        )
    if pair.box is None:
        return image, mask
    if (
        pair.box.top + pair.box.height > mask.shape[0]
        or pair.box.left + pair.box.width > mask.shape[1]
    ):
        raise InputError(
            f"{pair.image_path} is {mask.shape[1]} x {mask.shape[0]} pixels, but manifest.json has its picture in "
            f"{pair.box}. Prepare the dataset again."
        )
    return cut(image, pair.box), cut(mask, pair.box)


def verify_pairs(
    pairs: list[Pair],
    threshold: int = 127,
    classes: int = 1,
    keep: Callable[[int, np.ndarray, np.ndarray], None] | None = None,
) -> list[str]:
    """Decode every pair before any work starts.

    Args:
        pairs: what to read.
        threshold: see `read_mask`.
        classes: 1 for masks, more for category maps.
        keep: gets the index, image and mask of every good pair, in several threads.

    Returns:
        Stems of the pairs whose mask is empty: legal, to be counted and reported.

    Raises:
        InputError: all pairs that can't be used, the first five with their reason.
    """

    def check(index: int) -> tuple[str, bool]:
        try:
            image, mask = read_pair(pairs[index], threshold, classes)
        except InputError as error:
            return str(error), False
        if keep:
            keep(index, image, mask)
        return "", not mask.any()

    results = map_with_progress(check, list(range(len(pairs))), "Verifying pairs")
    problems = [problem for problem, _ in results if problem]
    if problems:
        head = (
            f"{len(problems)} of {len(pairs)} pairs cannot be used: " if len(problems) > 1 else ""
        )
        raise InputError(head + first_five(problems))
    return [pair.stem for pair, (_, empty) in zip(pairs, results, strict=True) if empty]


def map_with_progress(function: Callable, items: list, title: str) -> list:
    """Apply `function` in 4 threads (Pillow decodes without the GIL), with a bar on a terminal."""
    with ThreadPoolExecutor(4) as pool:
        return list(progress_bar(pool.map(function, items), title, len(items)))
