"""The scanned region (sector) of an ultrasound picture and its beams, found in the picture itself.

A picture of a convex probe is a sector of rings around an apex above it. Outside the sector the
picture is black, except for text and scales. The sector is found as the convex hull of the large
regions that are not black, so it includes black cysts and shadows at its sides. The notch that the
probe's face cuts into the hull is removed. The lower rim of the sector is an arc around the apex.
"""

from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np

# Longest side of the grid on which the sector is searched, in cells. Fields in dB look no different
# on a finer grid.
GRID = 128
CROSS = np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]], np.uint8)  # a cell and its four neighbours
BLACK = 6  # grey levels up to it are no echo: JPEG leaves a few levels of noise outside the sector


@dataclass(frozen=True)
class Sector:
    """The scanned region of a picture.

    Attributes:
        mask: uint8 (rows, columns) on a coarse grid, 1 inside, 0 outside.
        height: of the picture, pixels.
        width: of the picture, pixels.
        apex: column and row where the beams meet, pixels; usually above the picture.
        near: distance from the apex to the nearest part of the sector, pixels.
        far: distance from the apex to its farthest part, pixels.
    """

    mask: np.ndarray
    height: int
    width: int
    apex: tuple[float, float]
    near: float
    far: float

    @cached_property
    def offsets(self) -> tuple[np.ndarray, np.ndarray]:
        """Columns (1, columns) and rows (rows, 1) from the apex to each cell's centre, pixels."""
        rows, columns = self.mask.shape
        apex_x, apex_y = self.apex
        x = (np.arange(columns, dtype=np.float32) + 0.5) * (self.width / columns) - apex_x
        y = (np.arange(rows, dtype=np.float32) + 0.5) * (self.height / rows) - apex_y
        return x[None], y[:, None]

    @cached_property
    def depth(self) -> np.ndarray:
        """Depth of each cell along its beam, float32, 0 at the probe and 1 at the deepest echo."""
        distance = np.hypot(*self.offsets)
        return np.clip((distance - self.near) / (self.far - self.near), 0, 1)

    @cached_property
    def angle(self) -> np.ndarray:
        """Direction of each cell's beam, float32: 0 straight down, -1 and 1 at the sides."""
        angle = np.arctan2(*self.offsets)
        widest = float(np.abs(angle[self.mask > 0]).max(initial=0))
        return angle / max(widest, 0.1)  # 0.1: no division by 0 where the sector is empty

    @cached_property
    def rim(self) -> np.ndarray:
        """Weights, float32 (rows, columns): 1 in the sector and in the cells next to it, else 0."""
        return cv2.dilate(self.mask, CROSS).astype(np.float32)

    @cached_property
    def core(self) -> np.ndarray:
        """Weights, float32 (rows, columns): 1 well inside, falling to exactly 0 before the rim."""
        kernel = np.ones((5, 5), np.uint8)
        inner = cv2.erode(self.mask, kernel, borderType=cv2.BORDER_CONSTANT, borderValue=1)
        return cv2.blur(inner.astype(np.float32), (3, 3))

    def enlarge(self, field: np.ndarray) -> np.ndarray:
        """Resize a coarse field, on the sector's grid or any other, to the picture, bilinearly."""
        return cv2.resize(field, (self.width, self.height), interpolation=cv2.INTER_LINEAR)


def find_sector(image: np.ndarray) -> Sector:
    """Find the sector of a picture.

    Args:
        image: RGB, uint8 (H, W, 3).

    Returns:
        The sector. Where nothing is brighter than black, its mask is empty and its beams start at
        the top.
    """
    height, width = image.shape[:2]
    scale = min(1, GRID / max(height, width))
    columns = max(1, round(width * scale))
    rows = max(1, round(height * scale))

    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    small = cv2.resize(grey, (columns, rows), interpolation=cv2.INTER_AREA)
    region = _large_regions((small > BLACK).astype(np.uint8))
    hull = _convex_hull(region)
    apex_x, apex_y = _fit_apex(hull)
    mask = _remove_notch(hull, region)

    inside = np.argwhere(mask)
    if len(inside):
        distances = np.hypot(inside[:, 1] + 0.5 - apex_x, inside[:, 0] + 0.5 - apex_y)
    else:
        distances = np.array([0.0, rows])
    near = float(distances.min())
    far = float(max(distances.max(), distances.min() + 1))

    cell = width / columns  # pixels
    return Sector(mask, height, width, (apex_x * cell, apex_y * cell), near * cell, far * cell)


def _large_regions(bright: np.ndarray) -> np.ndarray:
    """Keep the connected regions of a map of 0 and 1 that are larger than text and scales.

    More than one may stay: a black cyst can divide a sector.
    """
    opened = cv2.morphologyEx(bright, cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
    _, labels, statistics, _ = cv2.connectedComponentsWithStats(opened, connectivity=4)
    area = statistics[:, cv2.CC_STAT_AREA]
    keep = area >= 0.02 * area[1:].max(initial=1)  # a box of measurements is 1 % of a sector
    keep[0] = False  # label 0 is the background
    return keep.astype(np.uint8)[labels]


def _convex_hull(region: np.ndarray) -> np.ndarray:
    """The convex hull of all that is 1 in a map of 0 and 1, as such a map."""
    contours, _ = cv2.findContours(region, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    filled = np.zeros_like(region)
    if not contours:
        return filled
    corners = cv2.convexHull(np.concatenate(contours))
    return cv2.fillConvexPoly(filled, corners, 1)


def _remove_notch(hull: np.ndarray, region: np.ndarray) -> np.ndarray:
    """Remove the probe's face: what is black and open to the middle third of the upper rim."""
    columns = np.flatnonzero(hull.any(0))
    if not len(columns):
        return hull

    black = hull & (1 - region)
    count, labels = cv2.connectedComponents(black, connectivity=4)

    third = len(columns) // 3
    middle = columns[third : len(columns) - third]
    upper_rim = hull.argmax(0)[middle]
    notch = np.unique(labels[upper_rim, middle])
    notch = notch[notch > 0]  # label 0 is not black

    keep = np.ones(count, np.uint8)
    keep[notch] = 0
    return hull * keep[labels]


def _fit_apex(hull: np.ndarray) -> tuple[float, float]:
    """Column and row of the centre of the circle through the lower rim of the hull, in cells.

    Where the rim is no arc around a point above it (a linear probe, a rim that the picture cuts
    off) the apex is above the middle of the hull, half the hull's height up.

    Source: I. Kasa, IEEE Trans. Instrum. Meas. 25, 1976.
    """
    rows = np.flatnonzero(hull.any(1))
    columns = np.flatnonzero(hull.any(0))
    if not len(rows):
        return hull.shape[1] / 2, 0.0
    top = rows[0]
    height = len(rows)
    middle = (columns[0] + columns[-1] + 1) / 2
    width = len(columns)

    # The lower rim, without the edges of the sides, which are no arc.
    rim_columns = columns[width // 6 : width - width // 6]
    x = rim_columns + 0.5
    y = hull.shape[0] - hull[::-1, rim_columns].argmax(0)

    # A circle is linear in (2 cx, 2 cy, r^2 - cx^2 - cy^2).
    design = np.stack([x, y, np.ones(len(x))], 1)
    solution = np.linalg.lstsq(design, x**2 + y**2.0, rcond=None)[0]
    center_x = solution[0] / 2
    center_y = solution[1] / 2

    centered = abs(center_x - middle) < 0.2 * width + 1
    above = top - height < center_y < top + 0.3 * height
    if centered and above:
        return float(center_x), float(center_y)
    return float(middle), float(top - height / 2)
