"""Where a picture lies in the network's square, and the way back."""

from dataclasses import dataclass

import cv2
import numpy as np

from ovseg.core.registry import choose

FITS = {"letterbox": "keep the aspect ratio, black borders", "stretch": "fill the square"}


@dataclass(frozen=True)
class Box:
    """The part of a square that a picture fills, in pixels."""

    top: int
    left: int
    height: int
    width: int


def cut(picture: np.ndarray, box: Box) -> np.ndarray:
    """The part (height, width, ...) of a picture (H, W, ...) that lies in a box."""
    return picture[box.top : box.top + box.height, box.left : box.left + box.width]


def fit_box(height: int, width: int, size: int, fit: str) -> Box:
    """Where a (height, width) picture lies in a (size, size) square.

    Args:
        height: of the picture, pixels.
        width: of the picture, pixels.
        size: side of the square, pixels.
        fit: `letterbox` (centred, aspect ratio kept, black border) or `stretch` (the whole square).

    Raises:
        InputError: unknown `fit`.
    """
    choose("fit", fit, FITS)
    if fit == "stretch":
        return Box(0, 0, size, size)
    scale = size / max(height, width)
    box_height, box_width = max(1, round(height * scale)), max(1, round(width * scale))
    return Box((size - box_height) // 2, (size - box_width) // 2, box_height, box_width)


def resize_image(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize (H, W, 3) uint8: by area when shrinking, cubic when enlarging."""
    if image.shape[:2] == (height, width):
        return image
    shrinks = height * width < image.shape[0] * image.shape[1]
    return cv2.resize(
        image, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
    )


def resize_labels(labels: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize (H, W) uint8 labels by exact nearest neighbour, so no new label appears."""
    return cv2.resize(labels, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)


def place(picture: np.ndarray, size: int, fit: str) -> np.ndarray:
    """Resize an image (H, W, 3) or labels (H, W), uint8, into a black (size, size) square."""
    box = fit_box(*picture.shape[:2], size, fit)
    resize = resize_image if picture.ndim == 3 else resize_labels
    square = np.zeros((size, size, *picture.shape[2:]), np.uint8)
    square[box.top : box.top + box.height, box.left : box.left + box.width] = resize(
        picture, box.height, box.width
    )
    return square


def restore(probs: np.ndarray, height: int, width: int, fit: str) -> np.ndarray:
    """Undo `place` for a square of probabilities, float32 (S, S) -> (height, width), bilinear."""
    box = fit_box(height, width, probs.shape[0], fit)
    return cv2.resize(cut(probs, box), (width, height), interpolation=cv2.INTER_LINEAR)
