import numpy as np
import pytest

from ovseg.data.pixel_size import Calibration, PixelSize, Region

SIZE = PixelSize(0.2, 0.1)
SECTOR = Region(top=0, bottom=4, left=0, right=9, size=SIZE)
CURVE = Region(top=5, bottom=9, left=0, right=9, size=None)
UNCALIBRATED = "unknown: the file is not calibrated"


def lesion_at(top: int, bottom: int) -> np.ndarray:
    """A lesion in 10 x 10 pixels that fills the rows from `top` to `bottom` in two columns."""
    lesion = np.zeros((10, 10), bool)
    lesion[top : bottom + 1, 4:6] = True
    return lesion


def test_region_that_holds_the_lesion_gives_the_size():
    assert Calibration([SECTOR, CURVE]).find_size(lesion_at(0, 4)) == (SIZE, "region")


def test_last_row_of_a_region_belongs_to_it():
    alone = Calibration([SECTOR])
    assert alone.find_size(lesion_at(4, 4)) == (SIZE, "region")
    size, reason = alone.find_size(lesion_at(4, 5))
    assert size is None
    assert reason == "unknown: the lesion is not inside the calibrated regions"


def test_lesion_in_a_region_of_another_kind_has_no_size():
    for rows in ((5, 6), (4, 6)):
        size, reason = Calibration([SECTOR, CURVE]).find_size(lesion_at(*rows))
        assert size is None
        assert reason == "unknown: the lesion touches a region that is no 2D picture in cm"


@pytest.mark.parametrize(("height", "known"), [(0.2, True), (0.20001, True), (0.21, False)])
def test_lesion_across_regions_has_a_size_where_they_agree(height, known):
    below = Region(top=5, bottom=9, left=0, right=9, size=PixelSize(height, 0.1))
    size, reason = Calibration([SECTOR, below]).find_size(lesion_at(3, 7))
    assert (size == SIZE) == known
    if not known:
        assert reason == "unknown: the lesion lies in regions of different pixel sizes"


def test_two_pictures_side_by_side_each_give_their_own_size():
    left = Region(top=0, bottom=9, left=0, right=4, size=SIZE)
    right = Region(top=0, bottom=9, left=5, right=9, size=PixelSize(0.4, 0.4))
    lesion = np.zeros((10, 10), bool)
    lesion[2, 7] = True
    assert Calibration([left, right]).find_size(lesion) == (PixelSize(0.4, 0.4), "region")


def test_spacing_counts_only_where_no_region_has_a_size():
    spacing = PixelSize(0.3, 0.3)
    assert Calibration([], spacing).find_size(lesion_at(0, 9)) == (spacing, "PixelSpacing")
    assert Calibration([CURVE], spacing).find_size(lesion_at(0, 1)) == (spacing, "PixelSpacing")
    assert Calibration([SECTOR], spacing).find_size(lesion_at(0, 1)) == (SIZE, "region")


def test_file_without_calibration_gives_no_size():
    assert Calibration().find_size(lesion_at(0, 1)) == (None, UNCALIBRATED)
    assert Calibration([CURVE]).find_size(lesion_at(0, 1)) == (None, UNCALIBRATED)


def test_no_lesion_has_no_size():
    assert Calibration([SECTOR]).find_size(np.zeros((10, 10), bool)) == (None, "no lesion")
