"""Read the official downloads of MMOTU: images, and annotations in colours.

OTU_2d is B-mode, of eight categories; OTU_3d is contrast-enhanced ultrasound, of one.
"""

from functools import partial
from pathlib import Path

import cv2
import numpy as np

from ovseg.core.errors import InputError, first_five
from ovseg.data.masks import read_mask
from ovseg.data.pairs import list_images
from ovseg.data.pictures import advise_on_size, read_image
from ovseg.data.prepare.files import SourceFiles
from ovseg.data.prepare.sources import (
    LESION,
    Found,
    Labels,
    Reading,
    Source,
    no_lesion,
    path_in,
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


LOOKED_AT = 10  # annotations, to recognise the download


def is_otu2d(root: Path) -> bool:
    """Whether a folder has annotations in the colours of the download."""
    folder = root / "annotations"
    if not folder.is_dir() or not (root / "images").is_dir():
        return False
    paths = [path for path in sorted(folder.iterdir()) if path.suffix.lower() == ".png"]
    paths = [path for path in paths if not path.stem.endswith("_binary")]
    for path in paths[:LOOKED_AT]:
        try:
            _, category = read_categories(path)
        except InputError:
            continue
        if category:
            return True
    return False


def find_otu2d(files: SourceFiles, reading: Reading) -> Found:
    """Match images and annotations of the download by stem.

    Raises:
        InputError: a folder is missing or empty, or nothing matches.
    """
    root = files.root
    images = list_images(root / "images")
    colour = {}
    binary = {}
    for stem, path in list_images(root / "annotations").items():
        if stem.endswith("_binary"):
            binary[stem.removesuffix("_binary")] = path
        else:
            colour[stem] = path

    is_ceus = reading.kind == "ceus"
    found = Found(root, categories=[LESION] if is_ceus else list(CATEGORIES.values()))
    for stem, path in images.items():
        if stem not in colour:
            found.without_labels.append(Source(stem, path, (), no_lesion))
            continue
        label_paths = [colour[stem]]
        if stem in binary:
            label_paths.append(binary[stem])
        read_all = read_ceus_labels if is_ceus else read_labels
        read = partial(read_all, path, colour[stem], binary.get(stem))
        found.sources.append(Source(stem, path, tuple(label_paths), read))
    for stem, path in colour.items():
        if stem not in images:
            found.without_image.append(path_in(root, path))
    if not found.sources:
        names = [path.name for path in images.values()]
        raise InputError(f"No image in {root} has an annotation of its stem: {first_five(names)}.")
    return found


def read_categories(path: Path) -> tuple[np.ndarray, int]:
    """Read a colour annotation as ids.

    Returns:
        Category map, uint8 (H, W), 0 or the id; and that id, 1..8, or 0 where the annotation is
        empty.

    Raises:
        InputError: unreadable, a colour that is no category's, or two categories.
    """
    opaque = cv2.cvtColor(read_image(path), cv2.COLOR_RGB2RGBA)
    codes = opaque.view("<u4")[..., 0] & 0xFFFFFF  # a number for each colour, red lowest
    lesion = codes > 0
    codes_of_lesion = codes[lesion]
    found = codes_of_lesion[:1]
    if (codes_of_lesion != found).any():  # np.unique sorts, which takes long
        found = np.unique(codes_of_lesion)
    colours = []
    for code in found.tolist():
        colours.append((code & 255, code >> 8 & 255, code >> 16))
    colours.sort()

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
    return lesion.astype(np.uint8) * np.uint8(category), category


def read_labels(
    image_path: Path, colour_path: Path, binary_path: Path | None, height: int, width: int
) -> Labels:
    """The labels of an image; its lesion is that of the binary annotation, where there is one.

    Raises:
        InputError: an annotation can't be used, or has another size.
    """
    categories, _ = read_categories(colour_path)
    mask = (categories > 0).astype(np.uint8)
    if binary_path:
        mask = read_mask(binary_path, threshold=0)
    _check_sizes(image_path, (height, width), categories, mask)
    return Labels(mask, categories)


def read_ceus_labels(
    image_path: Path, colour_path: Path, binary_path: Path | None, height: int, width: int
) -> Labels:
    """The lesion of an image of OTU_3d: what is not black, in the binary one where there is one.

    Raises:
        InputError: an annotation can't be used, or has another size.
    """
    brightest: np.ndarray = read_image(colour_path).max(axis=2)
    annotation = (brightest > 0).astype(np.uint8)
    mask = annotation
    if binary_path:
        mask = read_mask(binary_path, threshold=0)
    _check_sizes(image_path, (height, width), annotation, mask)
    return Labels(mask, mask)


def _check_sizes(
    image_path: Path, size: tuple[int, int], annotation: np.ndarray, mask: np.ndarray
) -> None:
    """Refuse an annotation or a mask that has not the height and width of its image."""
    if size == annotation.shape == mask.shape:
        return
    other = mask.shape if annotation.shape == size else annotation.shape
    raise InputError(
        f"{image_path}, its annotation and its mask differ in size ({size[1]} x {size[0]}, "
        f"{annotation.shape[1]} x {annotation.shape[0]}, {mask.shape[1]} x {mask.shape[0]}). "
        f"{advise_on_size(image_path, size, other)}"
    )
