"""The marks that sonographers leave on a picture: measuring crosses with dotted lines, and labels, in yellow.

They sit on the lesion's edge and in the lesion, so a network may find them instead of the lesion (an image-level
shortcut, R. Geirhos et al., Nature Machine Intelligence 2, 2020). Drawn as often elsewhere, and taken away, they tell
it nothing.
"""

import random

import cv2
import numpy as np

from ovseg.data.augment.sector import Sector

YELLOWS = (
    (255, 255, 0),
    (240, 230, 40),
    (255, 245, 90),
    (215, 205, 30),
)  # as seen on MMOTU's pictures
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
YELLOW_EXCESS = 16  # red and green above blue, levels: of faint dots on grey tissue; noise of JPEG chroma is below


def caliper_ends(
    rng: random.Random, mask: np.ndarray, sector: Sector, on_lesion: bool
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Where a measurement begins and ends, (column, row) each.

    Args:
        rng: source of chance.
        mask: lesion, (H, W), above 0 is lesion.
        sector: of the image.
        on_lesion: at opposite points of the lesion's edge; otherwise, or without a lesion, anywhere in the sector.
    """
    contours, _ = cv2.findContours(
        (mask > 0).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE
    )
    size, angle = max(mask.shape), rng.uniform(0, 2 * np.pi)
    direction = np.array([np.cos(angle), np.sin(angle)])
    if on_lesion and contours:
        edge = max(contours, key=len)[:, 0]
        along = edge @ direction
        jitter = np.array([rng.gauss(0, size / 170), rng.gauss(0, size / 170)])
        first, last = edge[along.argmin()] + jitter, edge[along.argmax()] - jitter
    else:
        rows, columns = np.nonzero(sector.mask)
        cell = rng.randrange(len(rows)) if len(rows) else 0
        at = (columns[cell], rows[cell]) if len(rows) else (0, 0)
        middle = (np.array(at) + 0.5) * (sector.width / sector.mask.shape[1])
        reach = direction * size * rng.uniform(0.04, 0.2)
        first, last = middle - reach, middle + reach
    return tuple(first.round().astype(int).tolist()), tuple(last.round().astype(int).tolist())


def draw_caliper(
    image: np.ndarray,
    ends: tuple[tuple[int, int], tuple[int, int]],
    color: tuple[int, int, int],
    style: str = "plus",
    dotted: bool = True,
) -> np.ndarray:
    """The image with a measurement: a cross at both ends (`plus`, open in its middle, or `x`) and dots between."""
    picture, unit = image.copy(), max(image.shape) / 512
    if dotted:
        count = max(2, round(np.hypot(*np.subtract(*ends)) / (5 * unit)))
        for x, y in np.linspace(*ends, count).round().astype(int):
            if 0 <= x < image.shape[1] and 0 <= y < image.shape[0]:
                picture[y, x] = picture[y, x] // 2 + np.array(color, np.uint8) // 2
    arms = (
        ((1, 0), (-1, 0), (0, 1), (0, -1))
        if style == "plus"
        else ((1, 1), (-1, -1), (1, -1), (-1, 1))
    )
    inner, outer = (2 * unit, 8 * unit) if style == "plus" else (0, 5 * unit)
    for x, y in ends:
        for dx, dy in arms:
            near, far = ((round(x + dx * reach), round(y + dy * reach)) for reach in (inner, outer))
            cv2.line(picture, near, far, color, max(1, round(unit)))
    return picture


def draw_label(
    image: np.ndarray, text: str, at: tuple[int, int], color: tuple[int, int, int]
) -> np.ndarray:
    """The image with a text whose lower left corner is at (column, row)."""
    unit = max(image.shape) / 512
    return cv2.putText(
        image.copy(),
        text,
        at,
        cv2.FONT_HERSHEY_SIMPLEX,
        0.55 * unit,
        color,
        max(1, round(1.3 * unit)),
        cv2.LINE_AA,
    )


def find_calipers(image: np.ndarray) -> np.ndarray:
    """Yellow marks as a mask, uint8 (H, W) of 0 and 255; large yellow areas (a tinted picture, Doppler) are none."""
    red, green, blue = cv2.split(image)
    yellow = cv2.compare(cv2.subtract(cv2.min(red, green), blue), YELLOW_EXCESS, cv2.CMP_GT)
    side = (
        2 * (max(image.shape) // 100) + 3
    )  # wider than any stroke: what survives an opening is an area
    area = cv2.morphologyEx(yellow, cv2.MORPH_OPEN, np.ones((side, side), np.uint8))
    thin = cv2.subtract(yellow, cv2.dilate(area, np.ones((side, side), np.uint8)))
    return cv2.dilate(thin, np.ones((5, 5), np.uint8))


def remove_calipers(image: np.ndarray) -> np.ndarray:
    """The image with its yellow marks filled from around them.

    Source: A. Telea, J. Graphics Tools 9(1), 2004.
    """
    marks = find_calipers(image)
    return cv2.inpaint(image, marks, 2, cv2.INPAINT_TELEA) if marks.any() else image
