"""Where a picture lies in the network's square, and the way back."""

from dataclasses import dataclass

import cv2
import numpy as np

from ovseg.core.registry import choose

FITS = {
    "letterbox": "keep the aspect ratio, black borders",
    "stretch": "fill the square",
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


def cut(picture: np.ndarray, box: Box) -> np.ndarray:
    """The part (height, width, ...) of a picture (H, W, ...) that lies in a box, without a copy."""
    return picture[box.top : box.bottom, box.left : box.right]


def fit_box(height: int, width: int, size: int, fit: str) -> Box:
    """Where a (height, width) picture lies in a (size, size) square.

    Args:
        height: rows of the picture.
        width: columns of the picture.
        size: side of the square, pixels.
        fit: `letterbox` (centred, aspect ratio kept, black border) or `stretch` (the whole square).

    Raises:
        InputError: unknown `fit`.
    """
    choose("fit", fit, FITS)

    if fit == "stretch":
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


def resize_image(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize (H, W, 3) uint8: by area when shrinking, cubic when enlarging."""
    if image.shape[:2] == (height, width):
        return image

    interpolation = cv2.INTER_CUBIC
    if height * width < image.shape[0] * image.shape[1]:
        interpolation = cv2.INTER_AREA
    return cv2.resize(image, (width, height), interpolation=interpolation)


def resize_labels(labels: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize (H, W) uint8 labels by exact nearest neighbour, so no new label appears."""
    return cv2.resize(labels, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)


def place(picture: np.ndarray, size: int, fit: str) -> np.ndarray:
    """Resize an image (H, W, 3) or labels (H, W), uint8, into a black (size, size) square.

    Args:
        picture: three axes are taken as an image, two as labels.
        size: side of the square, pixels.
        fit: see `fit_box`.

    Raises:
        InputError: unknown `fit`.
    """
    height, width = picture.shape[:2]
    box = fit_box(height, width, size, fit)

    if picture.ndim == 3:
        resized = resize_image(picture, box.height, box.width)
    else:
        resized = resize_labels(picture, box.height, box.width)

    square = np.zeros((size, size, *picture.shape[2:]), np.uint8)
    cut(square, box)[:] = resized
    return square


def restore(probs: np.ndarray, height: int, width: int, fit: str) -> np.ndarray:
    """Undo `place` for probabilities: the part of the square that a picture fills, at its own size.

    Args:
        probs: float32 (S, S), in the network's square.
        height: rows of the picture.
        width: columns of the picture.
        fit: how the picture was placed, see `fit_box`.

    Returns:
        float32 (height, width), interpolated bilinearly.

    Raises:
        InputError: unknown `fit`.
    """
    size = probs.shape[0]
    box = fit_box(height, width, size, fit)
    return cv2.resize(cut(probs, box), (width, height), interpolation=cv2.INTER_LINEAR)
