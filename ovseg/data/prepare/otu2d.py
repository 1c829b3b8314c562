"""Read the official OTU_2d download of MMOTU: images, and annotations in colours."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ovseg.core.errors import InputError, first_five
from ovseg.data.masks import read_mask
from ovseg.data.pairs import list_images
from ovseg.data.pictures import open_picture, read_image

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


def read_pair(source: Source) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
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
