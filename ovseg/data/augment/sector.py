"""Where the ultrasound lies in a picture, and the geometry of its beams, found from the picture alone.

A convex probe's picture is a sector of rings around an apex above it; outside is black but for text and scales. The
sector is the convex hull of the large regions that aren't black, so it takes in black cysts and shadows at its sides,
without the notch of the probe; its lower rim is an arc about the apex.
"""

from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np

GRID = 128  # cells of the longer side in which the sector is searched; finer changes nothing that fields can show
CROSS = np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]], np.uint8)  # a cell and its neighbours
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
        """Columns and rows from the apex to every cell's centre in pixels, (1, columns) and (rows, 1)."""
        rows, columns = self.mask.shape
        x = (np.arange(columns, dtype=np.float32) + 0.5) * (self.width / columns) - self.apex[0]
        y = (np.arange(rows, dtype=np.float32) + 0.5) * (self.height / rows) - self.apex[1]
        return x[None], y[:, None]

    @cached_property
    def depth(self) -> np.ndarray:
        """Depth of every cell along its beam, float32, 0 at the probe and 1 at the deepest echo."""
        return np.clip((np.hypot(*self.offsets) - self.near) / (self.far - self.near), 0, 1)

    @cached_property
    def angle(self) -> np.ndarray:
        """Direction of every cell's beam, float32, 0 straight down, -1 and 1 at the sector's sides."""
        angle = np.arctan2(*self.offsets)
        return angle / max(float(np.abs(angle[self.mask > 0]).max(initial=0)), 0.1)

    @cached_property
    def rim(self) -> np.ndarray:
        """Float32 (rows, columns): 1 inside and on the rim's own cells, falling to 0 beyond it."""
        return cv2.dilate(self.mask, CROSS).astype(np.float32)

    @cached_property
    def core(self) -> np.ndarray:
        """Float32 (rows, columns): 1 well inside, falling to exactly 0 before the rim."""
        inner = cv2.erode(
            self.mask, np.ones((5, 5), np.uint8), borderType=cv2.BORDER_CONSTANT, borderValue=1
        )
        return cv2.blur(inner.astype(np.float32), (3, 3))

    def enlarge(self, field: np.ndarray) -> np.ndarray:
        """A field on the grid, or any coarse one, at the picture's size, bilinear."""
        return cv2.resize(field, (self.width, self.height), interpolation=cv2.INTER_LINEAR)


def find_sector(image: np.ndarray) -> Sector:
    """The sector of a picture; a picture without one (black) has an empty mask and beams from its top.

    Args:
        image: RGB, uint8 (H, W, 3).
    """
    height, width = image.shape[:2]
    scale = min(1, GRID / max(height, width))
    columns, rows = max(1, round(width * scale)), max(1, round(height * scale))
    small = cv2.resize(
        cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), (columns, rows), interpolation=cv2.INTER_AREA
    )
    region = _large_regions((small > BLACK).astype(np.uint8))
    hull = _hull(region)
    x, y = _fit_apex(hull)
    mask = _without_notch(hull, region)
    inside = np.argwhere(mask)
    distance = (
        np.hypot(inside[:, 1] + 0.5 - x, inside[:, 0] + 0.5 - y)
        if len(inside)
        else np.array([0.0, rows])
    )
    near, far = float(distance.min()), float(max(distance.max(), distance.min() + 1))
    pixels = width / columns
    return Sector(mask, height, width, (x * pixels, y * pixels), near * pixels, far * pixels)


def _large_regions(bright: np.ndarray) -> np.ndarray:
    """The connected regions of a map of 0 and 1 that are no text or scale; a black cyst may part a sector in two."""
    opened = cv2.morphologyEx(bright, cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
    _, labels, statistics, _ = cv2.connectedComponentsWithStats(opened, connectivity=4)
    area = statistics[:, cv2.CC_STAT_AREA]
    keep = area >= 0.02 * area[1:].max(initial=1)  # a box of measurements is 1 % of a sector
    keep[0] = False
    return keep.astype(np.uint8)[labels]


def _hull(region: np.ndarray) -> np.ndarray:
    """The convex hull of a region and its parts."""
    contours, _ = cv2.findContours(region, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    filled = np.zeros_like(region)
    return (
        cv2.fillConvexPoly(filled, cv2.convexHull(np.concatenate(contours)), 1)
        if contours
        else filled
    )


def _without_notch(hull: np.ndarray, region: np.ndarray) -> np.ndarray:
    """The hull less what is black and open to the middle third of its upper rim: there the probe's face bulges in."""
    columns = np.flatnonzero(hull.any(0))
    if not len(columns):
        return hull
    _, labels = cv2.connectedComponents(hull & (1 - region), connectivity=4)
    third = len(columns) // 3
    middle = columns[third : len(columns) - third]
    notch = np.unique(labels[hull.argmax(0)[middle], middle])
    keep = np.ones(labels.max() + 1, np.uint8)
    keep[notch[notch > 0]] = 0
    return hull * keep[labels]


def _fit_apex(hull: np.ndarray) -> tuple[float, float]:
    """Column and row of the centre of the circle through the lower rim of the hull, in cells.

    Where the rim is no arc about a point above it (a linear probe, a rim cut off) the apex lies above the middle of
    the region, half its height up.
    """
    rows, columns = np.flatnonzero(hull.any(1)), np.flatnonzero(hull.any(0))
    if not len(rows):
        return hull.shape[1] / 2, 0.0
    top, height, middle, width = (
        rows[0],
        len(rows),
        (columns[0] + columns[-1] + 1) / 2,
        len(columns),
    )
    x = columns[width // 6 : width - width // 6]  # the sides' edges are no arc
    y = hull.shape[0] - hull[::-1, x].argmax(0)
    # a circle is linear in (2 cx, 2 cy, r^2 - cx^2 - cy^2) (I. Kasa, IEEE Trans. Instrum. Meas. 25, 1976)
    design = np.stack([x + 0.5, y, np.ones(len(x))], 1)
    (cx2, cy2, _), *_ = np.linalg.lstsq(design, (x + 0.5) ** 2 + y**2.0, rcond=None)
    x, y = cx2 / 2, cy2 / 2
    plausible = abs(x - middle) < 0.2 * width + 1 and top - height < y < top + 0.3 * height
    return (float(x), float(y)) if plausible else (float(middle), float(top - height / 2))
