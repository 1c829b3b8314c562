"""Which part of the network's square a picture fills. It needs numpy alone."""

from dataclasses import dataclass

import numpy as np

from ovseg.core.registry import choose

FITS = {
    "letterbox": "keep the aspect ratio, black borders",
    "stretch": "fill the square",
    "stretch_nearest": "fill the square by nearest neighbour, as the TensorFlow baseline does",
}


@dataclass(frozen=True)
class Box:
    """The part of a square that a picture fills, in pixels."""

    top: int
    left: int
    height: int
    width: int

    @property
    def bottom(self) -> int:
        """The first row below the box."""
        return self.top + self.height

    @property
    def right(self) -> int:
        """The first column to the right of the box."""
        return self.left + self.width


def has_border(fit: str) -> bool:
    """Whether a picture that is not square leaves a border, see `FITS`."""
    return fit == "letterbox"


def cut(picture: np.ndarray, box: Box) -> np.ndarray:
    """The part (height, width, ...) of a picture (H, W, ...) that lies in a box, without a copy."""
    return picture[box.top : box.bottom, box.left : box.right]


def fit_box(height: int, width: int, size: int, fit: str) -> Box:
    """Where a (height, width) picture lies in a (size, size) square.

    Args:
        height: rows of the picture.
        width: columns of the picture.
        size: side of the square, pixels.
        fit: `letterbox` (centred, aspect ratio kept, black border), `stretch` or `stretch_nearest`
            (the whole square).

    Raises:
        InputError: unknown `fit`.
    """
    choose("fit", fit, FITS)

    if not has_border(fit):
        return Box(top=0, left=0, height=size, width=size)

    scale = size / max(height, width)
    box_height = max(1, round(height * scale))
    box_width = max(1, round(width * scale))
    return Box(
        top=(size - box_height) // 2,
        left=(size - box_width) // 2,
        height=box_height,
        width=box_width,
    )
