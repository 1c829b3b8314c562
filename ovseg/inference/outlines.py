"""Masks as polygons, which a person can correct and which hold exactly the mask's pixels.

The convention is that of COCO, CVAT and LabelMe: (0, 0) is the corner of a picture, and a pixel is
in a polygon if its centre is, see `ovseg.data.prepare.polygons`.
"""

from dataclasses import dataclass

import contourpy
import cv2
import numpy as np
from scipy.ndimage import find_objects

from ovseg.core.components import label_components


@dataclass(frozen=True)
class Component:
    """A connected component (8 neighbours) of a mask.

    Attributes:
        area: its pixels.
        box: left, top, width and height, pixels.
        polygons: x and y of corners, float32 (N, 2) each, in pixels. Together they hold exactly the
            component's pixels. Usually it is one: none has a hole, so a component is cut through
            its holes, and parts that touch at a corner only are polygons of their own.
    """

    area: int
    box: tuple[int, int, int, int]
    polygons: list[np.ndarray]


def find_components(mask: np.ndarray) -> list[Component]:
    """The connected components of a mask, bool (H, W), in the order of their first pixels."""
    numbers = label_components(mask, diagonal=True)
    components = []
    for number, (rows, columns) in enumerate(find_objects(numbers), start=1):
        part = numbers[rows, columns] == number
        height, width = part.shape
        component = Component(
            area=int(part.sum()),
            box=(columns.start, rows.start, width, height),
            polygons=_outline(part, columns.start, rows.start),
        )
        components.append(component)
    return components


def outer_contours(mask: np.ndarray) -> list[np.ndarray]:
    """The outer contour of each connected component (8 neighbours), along its outermost pixels.

    Args:
        mask: bool (H, W).

    Returns:
        int32 (K, 2) each: column and row of pixels, in order; straight stretches are given by their
        ends. Holes have no contour.
    """
    found, hierarchy = cv2.findContours(
        mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE
    )
    contours = []
    for index, contour in enumerate(found):
        is_hole = hierarchy[0, index, 3] >= 0
        if not is_hole:
            contours.append(contour[:, 0])
    return contours


def _outline(part: np.ndarray, left: int, top: int) -> list[np.ndarray]:
    """The polygons of a part of a mask, bool (H, W), whose first pixel is (left, top).

    They run through the middles between the pixels inside and outside (marching squares), 0.35
    pixels or more from every centre. So pycocotools, which rounds to fifths of a pixel, fills them
    with the same pixels.
    """
    # With background around it. Now the centre of the part's first pixel is at (1, 1).
    values = np.pad(part, 1).astype(float)
    generator = contourpy.contour_generator(z=values, fill_type=contourpy.FillType.OuterOffset)
    polygons = []
    for points, offsets in zip(*generator.filled(0.5, 2), strict=True):
        has_hole = len(offsets) > 2
        if has_hole:
            hole = points[offsets[1] : offsets[2], 0] - 0.5
            middle = int(hole.min() + hole.max()) // 2
            return [
                *_outline(part[:, :middle], left, top),
                *_outline(part[:, middle:], left + middle, top),
            ]
        corners = points[:-1] + np.array((left - 0.5, top - 0.5))
        # Without the points between the ends of straight lines.
        polygons.append(cv2.approxPolyDP(corners.astype(np.float32), 0, closed=True)[:, 0])
    return polygons
