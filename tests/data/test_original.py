import numpy as np
import pytest

from ovseg.core.errors import InputError
from ovseg.data.original import original_mask
from ovseg.data.pairs import Pair


def test_mask_is_cut_to_its_box_and_gets_the_size_of_the_picture(tmp_path, save_png):
    square = np.zeros((8, 8), np.uint8)
    square[3, 0:2] = 255
    path = save_png(tmp_path / "m.png", square)
    item = {"height": 8, "width": 16, "box": {"top": 2, "left": 0, "height": 4, "width": 8}}
    expected = np.zeros((8, 16), np.uint8)
    expected[2:4, 0:4] = 1

    mask = original_mask(Pair("m", path, path), item, threshold=127, classes=1)

    assert np.array_equal(mask, expected)


def test_mask_without_an_entry_keeps_its_own_size(tmp_path, save_png):
    square = np.zeros((8, 8), np.uint8)
    square[3, 0:2] = 255
    path = save_png(tmp_path / "m.png", square)

    mask = original_mask(Pair("m", path, path), None, threshold=127, classes=1)

    assert np.array_equal(mask, square // 255)


def test_mask_smaller_than_the_square_of_the_manifest_is_an_error(tmp_path, save_png):
    path = save_png(tmp_path / "m.png", np.zeros((8, 8), np.uint8))
    item = {"height": 8, "width": 16, "box": {"top": 4, "left": 0, "height": 8, "width": 16}}
    message = "m.png has 8 rows and 8 columns, but .* ends at row 12, column 16"
    with pytest.raises(InputError, match=message):
        original_mask(Pair("m", path, path), item, threshold=127, classes=1)
