import numpy as np
import pytest

from ovseg.core.errors import InputError
from ovseg.data.geometry import Box, fit_box, place, resize_labels, restore


def test_letterbox_centres_the_picture():
    assert fit_box(50, 100, 64, "letterbox") == Box(16, 0, 32, 64)


def test_stretch_fills_the_square():
    assert fit_box(50, 100, 64, "stretch") == Box(0, 0, 64, 64)


def test_unknown_fit_is_an_error():
    with pytest.raises(InputError, match="Unknown fit 'crop'. Choose one of: letterbox, stretch"):
        fit_box(5, 5, 5, "crop")


def test_extreme_aspect_ratio_keeps_a_pixel():
    assert fit_box(1, 1000, 64, "letterbox").height == 1


def test_letterbox_border_is_black():
    square = place(np.full((50, 100, 3), 200, np.uint8), 64, "letterbox")
    assert (square[:16] == 0).all() and (square[48:] == 0).all() and (square[16:48] == 200).all()


def test_labels_get_no_new_value():
    labels = np.random.default_rng(0).choice([0, 3, 8], (37, 91)).astype(np.uint8)
    assert set(np.unique(resize_labels(labels, 64, 50))) <= {0, 3, 8}


@pytest.mark.parametrize("fit", ["letterbox", "stretch"])
@pytest.mark.parametrize(("height", "width"), [(83, 200), (200, 83), (64, 64)])
def test_restore_undoes_place(fit, height, width):
    mask = np.zeros((height, width), np.uint8)
    mask[height // 4 : height // 2, width // 3 : width * 2 // 3] = 1
    back = restore(place(mask, 256, fit).astype(np.float32), height, width, fit) > 0.5
    assert np.mean(back != mask) < 0.01
