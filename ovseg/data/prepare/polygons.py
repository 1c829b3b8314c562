"""Outlines and run lengths of annotation files, drawn as masks.

The convention of COCO, CVAT and LabelMe: the corner of a picture is (0, 0), so the centre of its
first pixel is (0.5, 0.5). A pixel is in an outline if its centre is: the rectangle from (10, 10) to
(20, 30) holds 10 x 20 pixels. (OpenCV's and Pillow's own filling adds the outline to it: 11 x 21.)
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np

# Here and not where it is used: threads that import it at once see half of it.
from matplotlib.path import Path as Outline

from ovseg.core.errors import InputError, first_five
from ovseg.data.pictures import advise_on_size
from ovseg.data.prepare.sources import LESION, Found, Labels, Reading, Source

LARGEST = 30_000  # of a coordinate, pixels: OpenCV draws up to 32,767
NEAR_EDGE = 5  # pixels; width of the band in which each pixel's centre is tested
ELLIPSE_POINTS = 90  # of the polygon that stands for an ellipse: 0.1 % less area


@dataclass(frozen=True)
class Polygon:
    """An outline.

    Attributes:
        label: its name.
        points: x and y, float (N, 2), in pixels or in shares of the picture.
        relative: they are shares of the picture.
    """

    label: str
    points: np.ndarray
    relative: bool = False

    def draw(self, height: int, width: int) -> np.ndarray:
        """What it encloses, bool (height, width), see `fill_polygon`."""
        return fill_polygon(self.pixels(height, width), height, width)

    def outside(self, height: int, width: int) -> int:
        """How many of its points lie outside of the picture."""
        points = self.pixels(height, width)
        too_small = (points < 0).any(1)
        too_large = (points > (width, height)).any(1)
        return int((too_small | too_large).sum())

    def pixels(self, height: int, width: int) -> np.ndarray:
        """Its points in pixels, float (N, 2)."""
        if self.relative:
            return self.points * (width, height)
        return self.points


@dataclass(frozen=True)
class Runs:
    """A mask as run lengths, the first of them background.

    Attributes:
        label: its name.
        counts: pixels of each run.
        height: rows of what the runs fill.
        width: columns of it.
        top: where its first row lies in the picture.
        left: where its first column lies.
        by_columns: the runs go down the columns, as in COCO, not along the rows.
    """

    label: str
    counts: Sequence[int]
    height: int
    width: int
    top: int = 0
    left: int = 0
    by_columns: bool = False

    def draw(self, height: int, width: int) -> np.ndarray:
        """The mask, bool (height, width).

        Raises:
            InputError: the runs don't fill their box, or it leaves the picture.
        """
        if min(self.counts, default=0) < 0 or sum(self.counts) != self.height * self.width:
            raise InputError(
                f"has run lengths of {sum(self.counts)} pixels for {self.width} x {self.height}"
            )
        bottom = self.top + self.height
        right = self.left + self.width
        if min(self.top, self.left) < 0 or bottom > height or right > width:
            raise InputError(f"has run lengths outside of the picture of {width} x {height}")

        values = np.arange(len(self.counts)) % 2 == 1
        flat = np.repeat(values, self.counts)
        if self.by_columns:
            part = flat.reshape(self.width, self.height).T
        else:
            part = flat.reshape(self.height, self.width)
        mask = np.zeros((height, width), bool)
        mask[self.top : bottom, self.left : right] = part
        return mask

    def outside(self, height: int, width: int) -> int:
        """Run lengths have no points."""
        return 0


Shape = Polygon | Runs


@dataclass(frozen=True)
class Drawing:
    """What an annotation file says of one image.

    Attributes:
        source: the image; its `read_labels` is replaced.
        shapes: in the order in which they are drawn.
        size: (height, width) that the file says the image has; None where it says none.
    """

    source: Source
    shapes: list[Shape]
    size: tuple[int, int] | None = None


def fill_polygon(points: np.ndarray, height: int, width: int) -> np.ndarray:
    """The pixels whose centre lies in an outline, bool (height, width).

    Args:
        points: x and y, float (N, 2), pixels. What lies outside of the picture is cut off.
        height: rows of the picture.
        width: columns of the picture.

    Raises:
        InputError: a coordinate is above `LARGEST` or not finite.
    """
    if not np.isfinite(points).all() or np.abs(points).max() > LARGEST:
        raise InputError(f"has a coordinate that is not in -{LARGEST}..{LARGEST} pixels")
    corners = np.round(points - 0.5).astype(np.int32)  # OpenCV's (0, 0) is the first pixel's centre
    filled = np.zeros((height, width), np.uint8)
    cv2.fillPoly(filled, [corners], 1)
    edge = np.zeros((height, width), np.uint8)
    cv2.polylines(edge, [corners], True, 1, NEAR_EDGE)

    rows, columns = np.nonzero(edge)
    centres = np.stack([columns + 0.5, rows + 0.5], 1)
    inside = filled > 0
    if len(centres):
        inside[rows, columns] = Outline(points).contains_points(centres)
    return inside


def make_sources(drawings: list[Drawing], found: Found, reading: Reading) -> Found:
    """Fill `found` with the images whose shapes were read.

    Args:
        drawings: what the annotation files say.
        found: what else the reader found.
        reading: which labels are lesion, and whether they are categories.

    Raises:
        InputError: `reading` names a label that no shape has, or keeps more than 255 categories.
    """
    names = sorted({shape.label for drawing in drawings for shape in drawing.shapes})
    unknown = [label for label in reading.labels if label not in names]
    if unknown:
        raise InputError(
            f"--labels names {first_five(unknown)}, but the labels in {found.root} are: "
            f"{', '.join(names) or 'none'}."
        )
    chosen = list(reading.labels) or names
    if reading.categories and len(chosen) > 255:
        raise InputError(f"{len(chosen)} labels are too many for categories, at most 255.")
    ids = {label: number for number, label in enumerate(chosen, 1)}
    if not reading.categories:
        ids = dict.fromkeys(chosen, 1)
    found.categories = chosen if reading.categories else [LESION]
    if chosen != names:
        others = [name for name in names if name not in ids]
        found.notes.append(f"Labels that are no lesion: {first_five(others)}.")

    for drawing in drawings:
        shapes = [shape for shape in drawing.shapes if shape.label in ids]
        read = partial(read_shapes, drawing.source.image_path, shapes, ids, drawing.size)
        found.sources.append(replace(drawing.source, read_labels=read))
    return found


def read_shapes(
    image_path: Path,
    shapes: list[Shape],
    ids: dict[str, int],
    size: tuple[int, int] | None,
    height: int,
    width: int,
) -> Labels:
    """Draw the shapes of one image; where two overlap, the later is on top.

    Args:
        image_path: for the message.
        shapes: what to draw.
        ids: category of each label.
        size: (height, width) that the annotations were made for, where they say it.
        height: rows of the image.
        width: columns of the image.

    Raises:
        InputError: the image has another size, or a shape can't be drawn.
    """
    if size is not None and size != (height, width):
        raise InputError(
            f"{image_path} is {width} x {height} pixels, but its annotation was made for "
            f"{size[1]} x {size[0]}. {advise_on_size(image_path, (height, width), size)}"
        )
    categories = np.zeros((height, width), np.uint8)
    outside = 0
    for shape in shapes:
        try:
            categories[shape.draw(height, width)] = ids[shape.label]
        except InputError as error:
            raise InputError(
                f"The annotation {shape.label} of {image_path} {error}. Correct or remove it."
            ) from None
        outside += shape.outside(height, width)
    return Labels((categories > 0).astype(np.uint8), categories, outside)


def make_points(values: object, where: str, least: int = 3) -> np.ndarray:
    """Points of a list of x, y, x, y, ... or of (x, y), float (N, 2).

    Raises:
        InputError: fewer than `least` points, or what is no finite number; `where` begins it.
    """
    try:
        points = np.array(values, float).reshape(-1, 2)
    except (TypeError, ValueError):
        raise InputError(f"{where} has points that are no pairs of numbers.") from None
    if len(points) < least:
        raise InputError(f"{where} has {len(points)} points, expected {least} or more.")
    if not np.isfinite(points).all():
        raise InputError(f"{where} has a point that is not finite.")
    return points


def make_ellipse(
    x: float, y: float, radius_x: float, radius_y: float, degrees: float = 0
) -> np.ndarray:
    """Points on an ellipse, float (90, 2), rotated clockwise."""
    angles = np.linspace(0, 2 * math.pi, ELLIPSE_POINTS, endpoint=False)
    along = radius_x * np.cos(angles)
    across = radius_y * np.sin(angles)
    turn = math.radians(degrees)
    columns = x + along * math.cos(turn) - across * math.sin(turn)
    rows = y + along * math.sin(turn) + across * math.cos(turn)
    return np.stack([columns, rows], 1)


def take(record: object, key: str, kind: type | tuple[type, ...], where: str) -> Any:
    """`record[key]`, which must be of a type; a bool is no number.

    Raises:
        InputError: it is not; `where` begins the message.
    """
    value = record.get(key) if isinstance(record, dict) else None
    if not isinstance(value, kind) or isinstance(value, bool):
        found = "nothing" if value is None else repr(value)[:40]
        raise InputError(f"{where} has {found} as {key}. Export it again.")
    return value


def take_size(record: object, height: str, width: str, where: str) -> tuple[int, int] | None:
    """(height, width) of a record; None where it says none.

    Raises:
        InputError: they are no whole numbers.
    """
    if not isinstance(record, dict) or record.get(height) is None or record.get(width) is None:
        return None
    sizes = []
    for key in (height, width):
        value = take(record, key, (int, float), where)
        if not math.isfinite(value) or value != int(value):
            raise InputError(f"{where} has {value} as {key}. Export it again.")
        sizes.append(int(value))
    return sizes[0], sizes[1]
