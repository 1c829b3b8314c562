"""Components agree with scipy's."""

import numpy as np
import pytest
from scipy import ndimage

from ovseg.core.components import label_components

SPIRAL = """
#########
........#
#######.#
#.....#.#
#.###.#.#
#.#...#.#
#.#####.#
#.......#
#########
"""


@pytest.mark.parametrize("diagonal", [False, True])
@pytest.mark.parametrize("density", [0.1, 0.4, 0.5, 0.6, 0.9])
def test_noise_is_labelled_as_by_scipy(density, diagonal):
    generator = np.random.default_rng(0)
    for shape in [(1, 1), (1, 40), (40, 1), (37, 53), (64, 64)]:
        mask = generator.random(shape) < density
        expected = ndimage.label(mask, np.ones((3, 3)) if diagonal else None)[0]
        assert np.array_equal(label_components(mask, diagonal), expected)


@pytest.mark.parametrize("diagonal", [False, True])
def test_long_winding_component_is_one(diagonal):
    rows = SPIRAL.split()
    mask = np.array([list(row) for row in rows]) == "#"
    large = np.kron(mask, np.ones((7, 5), bool))
    assert np.array_equal(label_components(large, diagonal), large.astype(int))


def test_corners_connect_only_with_diagonal():
    mask = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1]], bool)
    assert label_components(mask, diagonal=True).max() == 1
    assert label_components(mask, diagonal=False).max() == 3


@pytest.mark.parametrize("value", [False, True])
def test_empty_and_full_mask(value):
    mask = np.full((5, 7), value)
    assert np.array_equal(label_components(mask, diagonal=True), mask.astype(int))
