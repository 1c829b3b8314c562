"""Distances of outlines, on shapes whose distances are known and against MONAI's."""

import math

import numpy as np
import pytest
import torch

from ovseg.evaluation.distances import outline, surface_distances


def square(top, left, side, size=64):
    mask = np.zeros((size, size), bool)
    mask[top : top + side, left : left + side] = True
    return mask


def disc(radius, size=201):
    rows, columns = np.mgrid[:size, :size] - size // 2
    return np.hypot(rows, columns) <= radius


def test_equal_masks_have_no_distance():
    found = surface_distances(square(10, 10, 20), square(10, 10, 20), tolerance=0)
    assert (found.hd95, found.assd, found.nsd) == (0, 0, 1)


def test_square_in_the_middle_of_a_larger_one():
    # The small outline has 4 * 9 pixels, all 5 from the large one. The large one has 4 * 19: of a
    # side the 10 in the middle are 5 away, those beyond a corner of the small square hypot(5, k).
    found = surface_distances(square(15, 15, 10), square(10, 10, 20), tolerance=5)
    beyond = [math.hypot(5, k) for k in range(1, 6)]
    # Each of the 4 sides: 10 of 5, and on both sides of them 5; two sides share a corner.
    large = 4 * (10 * 5 + 2 * sum(beyond[:4]) + beyond[4])
    assert found.assd == pytest.approx((36 * 5 + large) / (36 + 76), abs=1e-6)
    assert found.nsd == pytest.approx((36 + 40) / (36 + 76))
    # 4 of 76 pixels are corners: the 95th percentile is just below them.
    values = np.array([5.0] * 40 + 8 * beyond[:4] + 4 * [beyond[4]])
    assert found.hd95 == pytest.approx(np.percentile(values, 95), abs=1e-6)


def test_shifted_square():
    # Of a side of 10 pixels, shifted by 2 rows: its upper and lower side are 2 away.
    found = surface_distances(square(12, 10, 10), square(10, 10, 10), tolerance=1)
    assert found.hd95 == 2
    # From each outline: the 10 pixels of the outer side are 2 away, the 2 below them 1. Of the 8
    # others of the inner side 6 are 2 away, and the 2 beside the lateral sides 1.
    assert found.assd == pytest.approx((10 * 2 + 2 * 1 + 6 * 2 + 2 * 1) / 36)
    assert found.nsd == pytest.approx(20 / 36)


def test_circles_around_one_point():
    found = surface_distances(disc(40), disc(60), tolerance=19)
    assert found.hd95 == pytest.approx(20, abs=0.8)
    assert found.assd == pytest.approx(20, abs=0.5)
    assert found.nsd < 0.05
    assert surface_distances(disc(40), disc(60), tolerance=21).nsd == 1


def test_missed_lesion_counts_with_the_diagonal():
    empty = np.zeros((30, 40), bool)
    lesion = empty.copy()
    lesion[5:10, 5:10] = True
    for pred, mask in ((empty, lesion), (lesion, empty)):
        found = surface_distances(pred, mask, tolerance=3)
        assert (found.hd95, found.assd, found.nsd) == (50, 50, 0)


def test_two_empty_masks_agree():
    empty = np.zeros((30, 40), bool)
    found = surface_distances(empty, empty, tolerance=3)
    assert (found.hd95, found.assd, found.nsd) == (0, 0, 1)


def test_full_masks_have_the_border_as_outline():
    full = np.ones((20, 30), bool)
    assert outline(full).sum() == 2 * 20 + 2 * 30 - 4
    found = surface_distances(full, full, tolerance=0)
    assert (found.hd95, found.assd, found.nsd) == (0, 0, 1)


def test_single_pixels():
    found = surface_distances(square(3, 4, 1), square(6, 8, 1), tolerance=5)
    assert (found.hd95, found.assd, found.nsd) == (5, 5, 1)


def test_spacing_of_rows_and_columns_counts():
    # 3 rows of 2 mm and 4 columns of 0.5 mm apart.
    far = math.hypot(3 * 2, 4 * 0.5)
    first = square(3, 4, 1)
    second = square(6, 8, 1)
    found = surface_distances(first, second, tolerance=6.3, spacing=(2.0, 0.5))
    assert (found.hd95, found.assd, found.nsd) == (pytest.approx(far), pytest.approx(far), 0)
    assert surface_distances(first, second, tolerance=6.4, spacing=(2.0, 0.5)).nsd == 1
    # The nearest pixel in millimetres is not the nearest in pixels: a row is further than three
    # columns.
    mask = square(10, 10, 1) | square(11, 13, 1)
    pred = square(11, 10, 1)
    found = surface_distances(pred, mask, tolerance=1.6, spacing=(2.0, 0.5))
    assert found.assd == pytest.approx((1.5 + 2.0 + 1.5) / 3)
    assert found.nsd == pytest.approx(2 / 3)


def test_equal_spacings_scale_all_distances():
    pred = disc(40)
    mask = np.roll(disc(50), 7, axis=1)
    pixels = surface_distances(pred, mask, tolerance=8)
    millimetres = surface_distances(pred, mask, tolerance=0.8, spacing=(0.1, 0.1))
    nearly = surface_distances(pred, mask, tolerance=0.8, spacing=(0.1, 0.1 + 1e-9))
    for found in (millimetres, nearly):
        assert found.hd95 == pytest.approx(pixels.hd95 / 10, rel=1e-5)
        assert found.assd == pytest.approx(pixels.assd / 10, rel=1e-5)
        assert found.nsd == pytest.approx(pixels.nsd, abs=0.02)  # some are exactly 8 pixels away


def test_diagonal_of_a_missed_lesion_has_the_unit_of_the_spacing():
    empty = np.zeros((30, 40), bool)
    lesion = empty.copy()
    lesion[5:10, 5:10] = True
    found = surface_distances(empty, lesion, tolerance=3, spacing=(0.2, 0.2))
    assert found.hd95 == pytest.approx(10)


def test_masks_of_two_shapes_are_refused():
    with pytest.raises(ValueError, match="expected one shape"):
        surface_distances(square(1, 1, 2, size=8), square(1, 1, 2, size=9), tolerance=1)


def random_mask(generator, height, width):
    """One to three ellipses, some cut by the border."""
    rows, columns = np.mgrid[:height, :width]
    mask = np.zeros((height, width), bool)
    for _ in range(generator.integers(1, 4)):
        centre = generator.uniform(0, 1, 2) * (height, width)
        radii = generator.uniform(0.03, 0.4, 2) * (height, width)
        mask |= np.hypot((rows - centre[0]) / radii[0], (columns - centre[1]) / radii[1]) < 1
    return mask


# MONAI 1.6.1 calls its own functions in a way that it has deprecated.
@pytest.mark.filterwarnings("ignore:.*always_return_as_numpy:FutureWarning")
def test_distances_are_those_of_monai():
    metrics = pytest.importorskip("monai.metrics", reason="needs the extra [monai]")
    generator = np.random.default_rng(0)
    for _ in range(30):
        height, width = generator.integers(20, 120, 2)
        pred = random_mask(generator, height, width)
        mask = random_mask(generator, height, width)
        if not pred.any() or not mask.any():
            continue
        tensors = [torch.from_numpy(part)[None, None].float() for part in (pred, mask)]
        found = surface_distances(pred, mask, tolerance=2)
        hd95 = metrics.compute_hausdorff_distance(*tensors, include_background=True, percentile=95)
        assd = metrics.compute_average_surface_distance(
            *tensors, include_background=True, symmetric=True
        )
        nsd = metrics.compute_surface_dice(*tensors, [2.0], include_background=True)
        assert found.hd95 == pytest.approx(hd95.item(), abs=1e-4)
        assert found.assd == pytest.approx(assd.item(), abs=1e-4)
        assert found.nsd == pytest.approx(nsd.item(), abs=1e-6)
