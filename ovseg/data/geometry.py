"""Where a picture lies in the network's square, and the way back."""

import cv2
import numpy as np

from ovseg.data.boxes import cut, fit_box


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

    if fit == "stretch_nearest":
        return cv2.resize(picture, (size, size), interpolation=cv2.INTER_NEAREST)
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
