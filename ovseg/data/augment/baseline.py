"""The variants of a pair that the TensorFlow baseline's online augmentor makes, defects included.

A function takes a picture, uint8 (H, W, 3), or a mask, uint8 (H, W) of 0 and 255, and returns it
changed, of the same shape. The baseline interpolates masks as pictures, and every pixel that is not
0 is lesion then. What it does to image and mask apart, such as a deformation of each by other
random numbers, is kept.
"""

import math
from collections.abc import Sequence
from functools import cache

import cv2
import numpy as np
from scipy.ndimage import gaussian_filter, map_coordinates

SEED = 137  # of the baseline's deformations, which are the same for every picture


def rotate(picture: np.ndarray, degrees: float) -> np.ndarray:
    """Turn about the centre; what comes in has the value of the pixel (2, 2)."""
    height, width = picture.shape[:2]
    matrix = cv2.getRotationMatrix2D((width / 2, height / 2), degrees, 1)
    return _warp(picture, matrix)


def shear(picture: np.ndarray, factor: float) -> np.ndarray:
    """Shift each column down by `factor` times its distance from the centre."""
    width = picture.shape[1]
    matrix = np.array([[1, 0, 0], [factor, 1, -factor * width / 2]], np.float32)
    return _warp(picture, matrix)


def _warp(picture: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    height, width = picture.shape[:2]
    border = picture[2, 2].tolist()
    return cv2.warpAffine(picture, matrix, (width, height), borderValue=border)


def shrink(picture: np.ndarray, factor: float) -> np.ndarray:
    """Shrink by nearest neighbour and paste in the middle of a background.

    A mask's background has the value of its pixel 10 rows and columns from the corner below right.
    An image's is the sum, modulo 256, of the pixel (2, 2) and of that one with its channels in
    reversed order.

    Raises:
        ValueError: fewer than 5 pixels would be left of a side.
    """
    height, width = picture.shape[:2]
    size = (int(width * factor), int(height * factor))
    if min(size) < 5:
        raise ValueError(f"{width} x {height} pixels can't be shrunk to {factor} of it")
    small = cv2.resize(picture, size, interpolation=cv2.INTER_NEAREST)
    corner = small[size[1] - 10, size[0] - 10]
    background = corner if picture.ndim == 2 else small[2, 2] + corner[::-1]
    pasted = np.empty_like(picture)
    pasted[:] = background
    top = (height - size[1]) // 2
    left = (width - size[0]) // 2
    pasted[top : top + size[1], left : left + size[0]] = small
    return pasted


def deform(picture: np.ndarray, alpha: float, sigmas: tuple[int, ...], number: int) -> np.ndarray:
    """Shift every pixel, of each channel apart, by smoothed noise that is always the same.

    Args:
        picture: an image or a mask, which have other noise.
        alpha: factor of the noise.
        sigmas: of all deformations, pixels: each takes its noise after those before it.
        number: which of them.

    Source: P. Simard et al., Best practices for convolutional neural networks, ICDAR 2003.
    """
    size = picture.shape[:2]
    shifts = _deformation_noise(*size, sigmas, number)[picture.ndim - 2]
    values = picture.reshape(*size, -1)
    rows, columns, channels = np.indices(values.shape)
    places = (rows + alpha * shifts[1], columns + alpha * shifts[0], channels)
    return map_coordinates(values, places, order=1, mode="nearest").reshape(picture.shape)


@cache
def _deformation_noise(
    height: int, width: int, sigmas: tuple[int, ...], number: int
) -> tuple[np.ndarray, np.ndarray]:
    """Smoothed noise of columns and rows, of a mask (2, H, W, 1) and of an image (2, H, W, 3)."""
    random = np.random.RandomState(SEED)
    for sigma in sigmas[: number + 1]:
        of_bgr = _smooth_noise(random, (height, width, 3), sigma)
        of_mask = _smooth_noise(random, (height, width, 1), sigma)
    return of_mask, of_bgr[..., ::-1]


def _smooth_noise(
    random: np.random.RandomState, shape: tuple[int, int, int], sigma: int
) -> np.ndarray:
    shifts = []
    for _axis in range(2):
        noise = random.rand(*shape) * 2 - 1
        shifts.append(gaussian_filter(noise, sigma, mode="constant", cval=0))
    return np.stack(shifts)


def distort(
    picture: np.ndarray, size: float, sigma: float, random: np.random.Generator
) -> np.ndarray:
    """Shift every pixel by smoothed noise, at most `size` of the side to the right or down.

    Args:
        picture: a square.
        size: share of the side.
        sigma: of the smoothing, pixels.
        random: the baseline draws other numbers for the mask than for its image.
    """
    side = picture.shape[0]
    noise = random.normal(size=(side, side))
    shifts = []
    for order in ((0, 1), (1, 0)):
        smooth = gaussian_filter(noise, sigma, order=order)
        shifts.append(smooth * (int(side * size) / smooth.max()))
    rows, columns = np.indices((side, side))
    map_x = (columns - shifts[0]).astype(np.float32)
    map_y = (rows - shifts[1]).astype(np.float32)
    return cv2.remap(picture, map_x, map_y, cv2.INTER_LINEAR)


def bulge(
    picture: np.ndarray, centers: Sequence[Sequence[float]], radius: float, amount: float
) -> np.ndarray:
    """Distort the disc around each centre, one after the other, as a lens does.

    A pixel at the distance d from the centre takes the value at d sin(pi d / 2r) ** amount.

    Args:
        picture: an image or a mask.
        centers: columns and rows, as shares of the sides.
        radius: r, as a share of the width.
        amount: above 0 for a barrel, below it for a pincushion.
    """
    height, width = picture.shape[:2]
    rows, columns = np.indices((height, width))
    for column, row in centers:
        x = columns - width * column
        y = rows - height * row
        distance = np.sqrt(x * x + y * y)
        inside = (distance > 0) & (distance < width * radius)
        angle = math.pi * distance[inside] / (width * radius) / 2
        factor = np.ones((height, width))
        factor[inside] = np.sin(angle) ** amount
        map_x = (factor * x + width * column).astype(np.float32)
        map_y = (factor * y + height * row).astype(np.float32)
        picture = cv2.remap(picture, map_x, map_y, cv2.INTER_LINEAR)
    return picture


def sharpen(picture: np.ndarray, amount: float) -> np.ndarray:
    """Subtract `amount` times the eight neighbours, add 8 times as much of the pixel itself."""
    kernel = np.full((3, 3), -amount, np.float64)
    kernel[1, 1] = 1 + 8 * amount
    return cv2.filter2D(picture, ddepth=-1, kernel=kernel)


def brighten(picture: np.ndarray, factor: float, offset: float) -> np.ndarray:
    """Multiply and add; an offset makes every pixel of the mask lesion."""
    return cv2.convertScaleAbs(picture, alpha=factor, beta=offset)
