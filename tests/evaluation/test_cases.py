"""The row of one image."""

import math

import numpy as np
import pytest

from ovseg.evaluation.cases import centroid_distance, describe_picture, score_case


def box(top, left, bottom, right, size=100):
    mask = np.zeros((size, size), np.uint8)
    mask[top:bottom, left:right] = 1
    return mask


def test_row_of_a_shifted_square():
    mask = box(20, 20, 60, 60)
    labels = box(30, 20, 70, 60)
    row = score_case(labels * np.float32(0.9), labels, mask)
    assert row["dice_original"] == pytest.approx(0.75)
    assert row["iou_original"] == pytest.approx(0.6)
    assert row["sensitivity_original"] == row["precision_original"] == pytest.approx(0.75)
    assert row["hd95"] == 10
    assert row["centroid_distance"] == pytest.approx(10)
    assert (row["components"], row["pred_components"]) == (1, 1)
    assert (row["height"], row["width"]) == (100, 100)
    assert row["lesion_pixels_original"] == row["pred_pixels_original"] == 1600
    assert row["hit_pixels_original"] == 1200
    assert row["confidence"] == pytest.approx(2 * 0.9 / 1.9)
    assert row["failure"] == "other"


def test_categories_count_as_lesion():
    row = score_case(np.ones((100, 100), np.float32), box(0, 0, 9, 9) * 3, box(0, 0, 9, 9) * 2)
    assert row["dice_original"] == 1
    assert row["failure"] == "good"


def test_empty_prediction():
    empty = np.zeros((100, 100), np.uint8)
    row = score_case(empty.astype(np.float32), empty, box(20, 20, 60, 60))
    assert row["dice_original"] == 0
    assert math.isnan(row["precision_original"])
    assert math.isnan(row["centroid_distance"])
    assert row["hd95"] == pytest.approx(100 * math.sqrt(2))
    assert row["failure"] == "missed"


def test_row_in_millimetres_of_a_shifted_square():
    mask = box(20, 20, 60, 60)
    labels = box(30, 20, 70, 60)
    pixels = score_case(labels.astype(np.float32), labels, mask)
    row = score_case(labels.astype(np.float32), labels, mask, spacing=(0.2, 0.1))
    assert row["hd95_mm"] == pytest.approx(2.0)  # 10 rows
    assert row["centroid_distance_mm"] == pytest.approx(2.0)
    assert row["lesion_area_mm2"] == row["pred_area_mm2"] == pytest.approx(1600 * 0.02)
    assert row["nsd_mm"] < 1
    near = score_case(labels.astype(np.float32), labels, mask, spacing=(0.1, 0.1))
    assert near["nsd_mm"] == 1  # all within 10 rows of 0.1 mm, the tolerance
    # What is in pixels stays.
    assert {name: row[name] for name in pixels} == pixels
    assert not any("mm" in name for name in pixels)


def test_missed_lesion_has_areas_and_no_centre_in_millimetres():
    empty = np.zeros((100, 100), np.uint8)
    row = score_case(empty.astype(np.float32), empty, box(0, 0, 10, 10), spacing=(0.5, 0.5))
    assert (row["lesion_area_mm2"], row["pred_area_mm2"]) == (25, 0)
    assert math.isnan(row["centroid_distance_mm"])
    assert row["hd95_mm"] == pytest.approx(50 * math.sqrt(2))


def test_distance_of_centres():
    assert centroid_distance(box(0, 0, 3, 3) > 0, box(3, 4, 6, 7) > 0) == pytest.approx(5)


@pytest.mark.parametrize(("column", "marked"), [(50, True), (61, True), (80, False)])
def test_yellow_mark_on_the_lesion(column, marked):
    mask = box(20, 20, 60, 60) > 0
    picture = np.full((100, 100, 3), 60, np.uint8)
    picture[40, column - 1 : column + 2] = (255, 255, 0)
    assert describe_picture(picture, mask) == {"doppler": False, "marked": marked}
    # The picture of a prepared dataset may have another size than the mask.
    small = picture[::2, ::2]
    assert describe_picture(small, mask)["marked"] == marked
    assert not describe_picture(np.full((100, 100, 3), 60, np.uint8), mask)["marked"]
