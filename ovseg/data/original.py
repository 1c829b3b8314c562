"""Reference masks at the size that pictures had before a dataset was prepared."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from ovseg.core.errors import InputError
from ovseg.data.boxes import Box, cut
from ovseg.data.geometry import resize_labels
from ovseg.data.masks import read_labels
from ovseg.data.pairs import Pair
from ovseg.data.pictures import read_image


def original_mask(
    pair: Pair,
    item: dict[str, Any] | None,
    threshold: int,
    classes: int,
    invert: bool = False,
) -> np.ndarray:
    """A pair's mask, or category map, at the picture's original size.

    For a prepared pair the square's mask is cut to its box and resized by nearest neighbour, so it
    is the annotation to about a pixel of the square.

    Args:
        pair: a pair with a mask, of the dataset's tree.
        item: its entry of `ovseg.data.manifest.prepared_items`; None where the tree's own size is
            the original one.
        threshold: see `ovseg.data.masks.read_mask`.
        classes: 1 for masks, more for category maps.
        invert: see `ovseg.data.masks.read_mask`.

    Returns:
        uint8 (height, width).

    Raises:
        InputError: the mask can't be read, or is smaller than the manifest says.
        ValueError: the pair has no mask.
    """
    if pair.mask_path is None:
        raise ValueError(f"{pair.image_path} has no mask.")

    labels = read_labels(pair.mask_path, threshold, classes, invert)
    if item is None:
        return labels

    box = Box(**item["box"])
    inside = cut(labels, box)
    if inside.shape != (box.height, box.width):
        raise InputError(
            f"{pair.mask_path} has {labels.shape[0]} rows and {labels.shape[1]} columns, but by "
            f"the dataset's manifest its picture ends at row {box.bottom}, column {box.right}. "
            "Prepare the dataset again."
        )
    return resize_labels(inside, item["height"], item["width"])


@dataclass(frozen=True)
class OriginalSplit:
    """The pairs of a split as they were before the dataset was prepared.

    Attributes:
        pairs: stem -> pair of the dataset's tree.
        items: stem -> see `ovseg.data.manifest.prepared_items`.
        mask_threshold: see `original_mask`.
        classes: see `original_mask`.
        invert: see `original_mask`.
    """

    pairs: dict[str, Pair]
    items: dict[str, dict[str, Any]]
    mask_threshold: int
    classes: int = 1
    invert: bool = False

    def mask(self, stem: str) -> np.ndarray:
        """Mask or category map at the original size, see `original_mask`."""
        return original_mask(
            self.pairs[stem],
            self.items.get(stem),
            self.mask_threshold,
            self.classes,
            self.invert,
        )

    def picture(self, stem: str) -> np.ndarray:
        """The picture as it was prepared, without its border, RGB uint8 (h, w, 3)."""
        picture = read_image(self.pairs[stem].image_path)
        item = self.items.get(stem)
        if item is None:
            return picture
        return cut(picture, Box(**item["box"]))
