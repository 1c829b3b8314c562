"""The yellow marks that sonographers leave on a picture: measuring crosses, dotted lines and
labels.

They are on the lesion's edge and in the lesion, so a network may find the marks instead of the
lesion (an image-level shortcut, R. Geirhos et al., Nature Machine Intelligence 2, 2020). Marks that
are drawn just as often elsewhere, and marks that are removed, carry no information about the
lesion.
"""

import random
from dataclasses import dataclass

import cv2
import numpy as np

from ovseg.data.augment.sector import Sector

Point = tuple[int, int]  # column, row
Color = tuple[int, int, int]  # RGB


@dataclass(frozen=True)
class Cross:
    """The mark at the end of a measurement; lengths in 1/512 of the picture's longer side.

    Attributes:
        arms: direction of each arm, (columns, rows).
        inner: where the arms begin; above 0 the middle of the cross is open.
        outer: where the arms end.
    """

    arms: tuple[Point, ...]
    inner: float
    outer: float


CROSSES = {
    "plus": Cross(arms=((1, 0), (-1, 0), (0, 1), (0, -1)), inner=2, outer=8),
    "x": Cross(arms=((1, 1), (-1, -1), (1, -1), (-1, 1)), inner=0, outer=5),
}
# As seen on the pictures of MMOTU.
YELLOWS: tuple[Color, ...] = (
    (255, 255, 0),
    (240, 230, 40),
    (255, 245, 90),
    (215, 205, 30),
)
LABELS = (
    "L-OV",
    "R-OV",
    "ROV-M",
    "LOV-CY",
    "R-M",
    "L-CY",
    "M",
    "M1",
    "M2",
    "Lt Ovary",
    "Rt Ovary",
    "1",
    "2",
    "3",
)
# Red and green above blue, levels. Faint dots on grey tissue reach it, the noise of JPEG's chroma
# does not.
YELLOW_EXCESS = 16


def caliper_ends(
    rng: random.Random, mask: np.ndarray, sector: Sector, on_lesion: bool
) -> tuple[Point, Point]:
    """Draw where a measurement begins and ends.

    Args:
        rng: source of random numbers.
        mask: lesion, (H, W), above 0 is lesion.
        sector: of the image.
        on_lesion: put the ends at opposite points of the lesion's edge; otherwise, or where there
            is no lesion, they are anywhere in the sector.
    """
    lesion = (mask > 0).astype(np.uint8)
    contours, _ = cv2.findContours(lesion, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    size = max(mask.shape)
    angle = rng.uniform(0, 2 * np.pi)
    direction = np.array([np.cos(angle), np.sin(angle)])

    if on_lesion and contours:
        edge = max(contours, key=len)[:, 0]
        along = edge @ direction
        jitter = np.array([rng.gauss(0, size / 170), rng.gauss(0, size / 170)])
        first = edge[along.argmin()] + jitter
        last = edge[along.argmax()] - jitter
    else:
        middle = _draw_place(rng, sector)
        reach = direction * size * rng.uniform(0.04, 0.2)
        first = middle - reach
        last = middle + reach
    return _round_point(first), _round_point(last)


def _draw_place(rng: random.Random, sector: Sector) -> np.ndarray:
    """Column and row of the centre of a random cell of the sector, pixels.

    Where the sector is empty it is the picture's first cell.
    """
    rows, columns = np.nonzero(sector.mask)
    place = np.array([0, 0])
    if len(rows):
        cell = rng.randrange(len(rows))
        place = np.array([columns[cell], rows[cell]])
    return (place + 0.5) * (sector.width / sector.mask.shape[1])


def _round_point(point: np.ndarray) -> Point:
    """The nearest pixel."""
    column, row = point.round().astype(int).tolist()
    return column, row


def draw_caliper(
    image: np.ndarray,
    ends: tuple[Point, Point],
    color: Color,
    style: str = "plus",
    dotted: bool = True,
) -> np.ndarray:
    """Draw a measurement on a copy of the image.

    Args:
        image: RGB, uint8 (H, W, 3).
        ends: where the crosses are; they may be outside the picture.
        color: RGB.
        style: of the crosses, a name of `CROSSES`.
        dotted: connect the crosses with half-transparent dots.
    """
    height, width = image.shape[:2]
    unit = max(image.shape) / 512
    picture = image.copy()

    if dotted:
        first, last = ends
        length = np.hypot(*np.subtract(first, last))
        count = max(2, round(length / (5 * unit)))
        half_color = np.array(color, np.uint8) // 2
        for x, y in np.linspace(first, last, count).round().astype(int):
            if 0 <= x < width and 0 <= y < height:
                picture[y, x] = picture[y, x] // 2 + half_color

    cross = CROSSES[style]
    inner = cross.inner * unit
    outer = cross.outer * unit
    thickness = max(1, round(unit))
    for x, y in ends:
        for dx, dy in cross.arms:
            start = (round(x + dx * inner), round(y + dy * inner))
            end = (round(x + dx * outer), round(y + dy * outer))
            cv2.line(picture, start, end, color, thickness)
    return picture


def draw_label(image: np.ndarray, text: str, at: Point, color: Color) -> np.ndarray:
    """Write a text on a copy of the image, its lower left corner at the point `at`."""
    unit = max(image.shape) / 512
    thickness = max(1, round(1.3 * unit))
    font = cv2.FONT_HERSHEY_SIMPLEX
    return cv2.putText(image.copy(), text, at, font, 0.55 * unit, color, thickness, cv2.LINE_AA)


def find_calipers(image: np.ndarray) -> np.ndarray:
    """Find yellow marks; large yellow areas (a tinted picture, Doppler) are none.

    Args:
        image: RGB, uint8 (H, W, 3).

    Returns:
        Mask of the marks, uint8 (H, W) of 0 and 255.
    """
    red, green, blue = cv2.split(image)
    excess = cv2.subtract(cv2.min(red, green), blue)
    _, yellow = cv2.threshold(excess, YELLOW_EXCESS, 255, cv2.THRESH_BINARY)

    # The square is wider than any stroke: what remains after an opening with it is an area.
    side = 2 * (max(image.shape) // 100) + 3
    square = np.ones((side, side), np.uint8)
    area = cv2.morphologyEx(yellow, cv2.MORPH_OPEN, square)
    thin = cv2.subtract(yellow, cv2.dilate(area, square))
    return cv2.dilate(thin, np.ones((5, 5), np.uint8))


def remove_calipers(image: np.ndarray) -> np.ndarray:
    """Replace yellow marks with what surrounds them; an image without marks is returned as it is.

    Source: A. Telea, J. Graphics Tools 9(1), 2004.
    """
    marks = find_calipers(image)
    if not marks.any():
        return image
    return cv2.inpaint(image, marks, 2, cv2.INPAINT_TELEA)
