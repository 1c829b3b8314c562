"""Reference masks at the size that pictures had before a dataset was prepared."""

from pathlib import Path
from typing import Any

import numpy as np

from ovseg.data.geometry import resize_labels
from ovseg.data.manifest import read_manifest
from ovseg.data.pairs import Pair, read_labels
from ovseg.errors import InputError


def prepared_items(root: Path) -> dict[str, dict[str, Any]]:
    """Stem -> what the manifest says of a picture that was placed in a square (`height`, `width`, `box`).

    Empty for a tree of pictures as they are: the baseline's layout, phantoms.
    """
    return {item["stem"]: item for item in read_manifest(root).get("items", []) if "box" in item}


def original_mask(pair: Pair, item: dict[str, Any] | None, threshold: int, classes: int) -> np.ndarray:
    """A pair's mask, or category map, at the picture's original size.

    Of a prepared pair it is the square's mask, cut out of its box and resized by nearest neighbour, so it is the
    annotation to about a pixel of the square.

    Args:
        pair: of the dataset's tree.
        item: its entry of `prepared_items`; None where the tree's own size is the original one.
        threshold: see `ovseg.data.pairs.read_mask`.
        classes: 1 for masks, more for category maps.

    Returns:
        uint8 (height, width).

    Raises:
        InputError: the mask can't be read, or is not the square that the manifest speaks of.
    """
    labels = read_labels(pair.mask_path, threshold, classes)
    if item is None:
        return labels
    top, left, height, width = (item["box"][name] for name in ("top", "left", "height", "width"))
    inside = labels[top : top + height, left : left + width]
    if inside.shape != (height, width):
        raise InputError(
            f"{pair.mask_path} has {labels.shape[0]} rows and {labels.shape[1]} columns, but by the dataset's manifest "
            f"its picture ends at row {top + height}, column {left + width}. Prepare the dataset again."
        )
    return resize_labels(inside, item["height"], item["width"])
