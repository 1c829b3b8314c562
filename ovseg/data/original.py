"""Reference masks at the size that pictures had before a dataset was prepared."""

from typing import Any

import numpy as np

from ovseg.core.errors import InputError
from ovseg.data.geometry import Box, cut, resize_labels
from ovseg.data.masks import read_labels
from ovseg.data.pairs import Pair


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
