"""Masks as polygons, and polygons as the same masks."""

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco_mask

from ovseg.data.prepare.polygons import fill_polygon
from ovseg.inference.outlines import find_components, outer_contours


def draw(*rows: str) -> np.ndarray:
    return np.array([[pixel == "#" for pixel in row] for row in rows])


def ring() -> np.ndarray:
    mask = np.zeros((40, 50), bool)
    mask[5:35, 5:45] = True
    mask[10:15, 10:20] = False
    mask[20:30, 30:31] = False
    mask[22, 12] = False
    return mask


def smooth() -> np.ndarray:
    noise = np.random.default_rng(1).standard_normal((80, 100))
    return cv2.GaussianBlur(noise, (0, 0), 3) > 0.02


MASKS = {
    "one pixel": draw("...", ".#.", "..."),
    "corners of the picture": draw("#..#", "....", "#..#"),
    "whole picture": np.ones((5, 7), bool),
    "one pixel large picture": np.ones((1, 1), bool),
    "diagonal": np.eye(9, dtype=bool),
    "holes": ring(),
    "island in a hole": draw("#####", "#...#", "#.#.#", "#...#", "#####"),
    "hole that touches another at a corner": draw("#####", "#.###", "##.##", "#####"),
    "smooth": smooth(),
    "noise": np.random.default_rng(0).random((60, 70)) > 0.5,
}


@pytest.mark.parametrize("name", MASKS)
def test_polygons_hold_exactly_the_pixels_of_the_mask(name):
    mask = MASKS[name]
    by_ovseg = np.zeros_like(mask)
    by_pycocotools = np.zeros_like(mask)
    for component in find_components(mask):
        filled = np.zeros_like(mask)
        for polygon in component.polygons:
            assert polygon.min() >= 0
            assert (polygon <= (mask.shape[1], mask.shape[0])).all()
            filled |= fill_polygon(polygon, *mask.shape)
        assert filled.sum() == component.area
        rows, columns = np.nonzero(filled)
        box = (columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1)
        assert component.box == box
        by_ovseg |= filled
        points = [polygon.ravel().tolist() for polygon in component.polygons]
        runs = coco_mask.merge(coco_mask.frPyObjects(points, *mask.shape))
        by_pycocotools |= coco_mask.decode(runs) > 0
    assert np.array_equal(by_ovseg, mask)
    assert np.array_equal(by_pycocotools, mask)


def test_corners_lie_in_the_middles_between_pixels():
    [component] = find_components(draw("....", ".##.", "...."))
    [polygon] = component.polygons
    corners = {(1, 1.5), (1.5, 1), (2.5, 1), (3, 1.5), (2.5, 2), (1.5, 2)}
    assert {tuple(corner) for corner in polygon.tolist()} == corners


def test_hole_cuts_a_component_in_two_polygons():
    components = find_components(draw("###.", "#.#.", "###.", "...#"))
    assert [len(component.polygons) for component in components] == [3]
    [component] = components
    assert component.area == 9
    assert component.box == (0, 0, 4, 4)


def test_empty_mask_has_no_component():
    assert find_components(np.zeros((4, 5), bool)) == []
    assert outer_contours(np.zeros((4, 5), bool)) == []
