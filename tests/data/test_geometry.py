import numpy as np
import pytest

from ovseg.core.errors import InputError
from ovseg.data.boxes import Box, cut, fit_box
from ovseg.data.geometry import place, resize_image, resize_labels, restore


def test_letterbox_centres_the_picture():
    assert fit_box(50, 100, 64, "letterbox") == Box(16, 0, 32, 64)


def test_stretch_fills_the_square():
    assert fit_box(50, 100, 64, "stretch") == Box(0, 0, 64, 64)


def test_unknown_fit_is_an_error():
    with pytest.raises(InputError, match="Unknown fit 'crop'. Choose one of: letterbox, stretch"):
        fit_box(5, 5, 5, "crop")


def test_extreme_aspect_ratio_keeps_a_pixel():
    assert fit_box(1, 1000, 64, "letterbox").height == 1


def test_box_ends_behind_its_last_row_and_column():
    box = Box(top=2, left=3, height=4, width=5)
    assert (box.bottom, box.right) == (6, 8)
    assert cut(np.zeros((10, 20, 3)), box).shape == (4, 5, 3)


def test_letterbox_border_is_black():
    square = place(np.full((50, 100, 3), 200, np.uint8), 64, "letterbox")
    assert (square[:16] == 0).all()
    assert (square[16:48] == 200).all()
    assert (square[48:] == 0).all()


def test_image_of_the_wanted_size_is_not_copied():
    image = np.zeros((5, 6, 3), np.uint8)
    assert resize_image(image, 5, 6) is image


def test_image_is_averaged_when_it_shrinks():
    image = np.zeros((2, 2, 3), np.uint8)
    image[0] = 200
    assert resize_image(image, 1, 1).ravel().tolist() == [100, 100, 100]


def test_labels_get_no_new_value():
    labels = np.random.default_rng(0).choice([0, 3, 8], (37, 91)).astype(np.uint8)
    resized = resize_labels(labels, 64, 50)
    assert resized.shape == (64, 50)
    assert set(np.unique(resized)) <= {0, 3, 8}


@pytest.mark.parametrize("fit", ["letterbox", "stretch"])
@pytest.mark.parametrize(("height", "width"), [(83, 200), (200, 83), (64, 64)])
def test_restore_undoes_place(fit, height, width):
    mask = np.zeros((height, width), np.uint8)
    mask[height // 4 : height // 2, width // 3 : width * 2 // 3] = 1
    square = place(mask, 256, fit).astype(np.float32)
    restored = restore(square, height, width, fit) > 0.5
    assert np.mean(restored != mask) < 0.01


def test_stretch_nearest_takes_the_pixel_above_left():
    picture = np.arange(16, dtype=np.uint8).reshape(4, 4)
    assert place(picture, 2, "stretch_nearest").tolist() == [[0, 2], [8, 10]]
    image = np.stack([picture] * 3, axis=2)
    assert np.array_equal(place(image, 2, "stretch_nearest")[..., 0], [[0, 2], [8, 10]])
