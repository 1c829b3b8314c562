"""The variants of the TensorFlow baseline's augmentor, on numbers worked out by hand."""

import pickle

import cv2
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter, map_coordinates

from ovseg.core.errors import InputError
from ovseg.data.augment import baseline
from ovseg.data.augment.pipelines import BaselineVariant, augment, build_transform, flips_of

CENTERS = [[0.3, 0.3], [0.7, 0.3], [0.5, 0.5], [0.3, 0.7], [0.7, 0.7]]
# Of the author's configuration; its `vflip = Fale` is True.
AUTHORS = {
    "shears": [0.1],
    "deformation_sigmas": [8],
    "distortions": [0.02],
    "barrel_centers": CENTERS,
    "barrel_radius": 0.3,
    "barrel_amount": 0.3,
    "pincushion_centers": CENTERS,
    "pincushion_radius": 0.3,
    "pincushion_amount": -0.3,
}


def dot(size: int, row: int, column: int) -> np.ndarray:
    """A mask with one white pixel."""
    mask = np.zeros((size, size), np.uint8)
    mask[row, column] = 255
    return mask


def ramp(size: int) -> np.ndarray:
    """A mask-like picture whose values are the columns."""
    return np.tile(np.arange(size, dtype=np.uint8), (size, 1))


def test_rotation_is_counter_clockwise_about_the_middle():
    # (x, y) = (10, 4) is (2, -4) from the middle (8, 8); turned it is (-4, -2).
    assert np.array_equal(baseline.rotate(dot(16, 4, 10), 90), dot(16, 6, 4))


def test_what_a_rotation_brings_in_has_the_value_of_a_corner_pixel():
    picture = np.full((16, 16, 3), 50, np.uint8)
    picture[2, 2] = (1, 2, 3)
    assert baseline.rotate(picture, 45)[0, 0].tolist() == [1, 2, 3]


def test_shear_shifts_columns_down():
    # 2 columns to the right of the middle, half a row each.
    assert np.array_equal(baseline.shear(dot(16, 4, 10), 0.5), dot(16, 5, 10))


def test_background_of_a_shrunk_picture_is_a_sum_modulo_256():
    picture = np.full((32, 32, 3), (200, 10, 100), np.uint8)
    shrunk = baseline.shrink(picture, 0.5)
    assert shrunk[0, 0].tolist() == [(200 + 100) % 256, 10 + 10, (100 + 200) % 256]
    assert shrunk[8, 8].tolist() == shrunk[23, 23].tolist() == [200, 10, 100]
    assert shrunk[24, 24].tolist() == [44, 20, 44]


def test_background_of_a_shrunk_mask_is_one_of_its_pixels():
    mask = np.zeros((32, 32), np.uint8)
    mask[10:14, 10:14] = 255  # 10 of 16 rows and columns from below is 6, of 32 it is 12
    assert baseline.shrink(mask, 0.5)[0, 0] == 255
    assert baseline.shrink(dot(32, 20, 20), 0.5)[0, 0] == 0


def test_deformation_is_that_of_the_baseline():
    """Its own computation, of BGR, with image and mask deformed by different noise."""
    generator = np.random.default_rng(0)
    image = generator.integers(0, 256, (24, 24, 3), dtype=np.uint8)
    mask = np.zeros((24, 24), np.uint8)
    mask[8:16, 4:20] = 255
    random = np.random.RandomState(137)
    for number, sigma in enumerate((3, 2)):
        expected = []
        for picture in (image[..., ::-1], mask[..., None]):
            noise = [random.rand(*picture.shape) * 2 - 1 for _ in range(2)]
            dx, dy = (gaussian_filter(one, sigma, mode="constant", cval=0) * 90 for one in noise)
            x, y, z = np.meshgrid(np.arange(24), np.arange(24), np.arange(picture.shape[2]))
            places = [np.reshape(axis, (-1, 1)) for axis in (y + dy, x + dx, z)]
            values = map_coordinates(picture, places, order=1, mode="nearest")
            expected.append(values.reshape(picture.shape))
        assert np.array_equal(baseline.deform(image, 90, (3, 2), number), expected[0][..., ::-1])
        assert np.array_equal(baseline.deform(mask, 90, (3, 2), number), expected[1][..., 0])
        assert not np.array_equal(expected[1][..., 0], mask)


def test_distortion_shifts_by_at_most_its_size():
    distorted = baseline.distort(ramp(64), 0.1, 8, np.random.default_rng(0))
    inner = slice(8, 56)  # what comes from outside is black
    shift = (ramp(64).astype(int) - distorted)[inner, inner]
    assert 4 <= shift.max() <= 6  # int(0.1 * 64)
    assert np.array_equal(baseline.distort(ramp(64), 0, 8, np.random.default_rng(0)), ramp(64))


@pytest.mark.parametrize(
    ("amount", "column"),
    # 16 pixels from the middle, half of the radius: the sine of 45 degrees.
    [(1, 32 + 16 * 0.7071), (-1, 32 + 16 / 0.7071)],
)
def test_lens_takes_values_from_nearer_or_farther_away(amount, column):
    bulged = baseline.bulge(ramp(64), [[0.5, 0.5]], 0.5, amount)
    assert abs(bulged[32, 48] - column) < 1
    assert bulged[32, 32] == 32
    assert bulged[0, 10] == 10  # outside of the disc


def test_second_lens_distorts_what_the_first_has_left():
    first = baseline.bulge(ramp(64), CENTERS[:1], 0.3, 0.3)
    both = baseline.bulge(ramp(64), CENTERS[:2], 0.3, 0.3)
    assert np.array_equal(both, baseline.bulge(first, CENTERS[1:2], 0.3, 0.3))
    assert not np.array_equal(both, first)


def test_sharpening_weighs_the_neighbours():
    picture = np.full((8, 8), 100, np.uint8)
    picture[4, 4] = 110
    sharp = baseline.sharpen(picture, 1)
    assert sharp[4, 4] == 9 * 110 - 8 * 100
    assert sharp[4, 5] == 9 * 100 - 7 * 100 - 110
    assert sharp[0, 0] == 100


def test_brightening_makes_the_whole_mask_lesion():
    image = np.full((16, 16, 3), 100, np.uint8)
    mask = np.zeros((16, 16), np.uint8)
    brightened = BaselineVariant(False, False, [], [], brightening=[1.2, 10]).variants[1]
    assert brightened(image, np.random.default_rng(0)).max() == 130
    transform = build_transform(
        "baseline", {"hflip": False, "vflip": False, "angles": [], "shrinks": [],
                     "brightening": [1.2, 10]}
    )  # fmt: skip
    found = [augment(transform, image, mask, seed) for seed in range(20)]
    for changed, changed_mask in found:
        assert changed_mask.all() == (changed.max() == 130)
    assert {int(changed.max()) for changed, _ in found} == {100, 130}


@pytest.mark.parametrize(
    ("arguments", "count"),
    [
        ({}, 1 + 2 + 3 + 1),
        ({"vflip": False, "shears": [0.1, 0.2]}, 1 + 1 + 3 + 1 + 2 * 2),
        ({"angles": [], "shrinks": [], "sharpening": 1.0}, 1 + 2 + 1),
        (AUTHORS, 1 + 2 + 3 + 1 + 4 + 1 + 1 + 5 + 5),
    ],
)
def test_variants_are_as_many_as_the_baseline_makes(arguments, count):
    assert len(BaselineVariant(**arguments).variants) == count


def test_every_variant_is_drawn_and_a_seed_repeats_it():
    generator = np.random.default_rng(0)
    image = generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)
    mask = np.zeros((32, 32), np.uint8)
    mask[4:12, 6:28] = 1
    transform = build_transform("baseline", {})
    found = set()
    for seed in range(80):
        changed, changed_mask = augment(transform, image, mask, seed)
        again, _ = augment(transform, image, mask, seed)
        assert np.array_equal(changed, again)
        assert set(np.unique(changed_mask)) <= {0, 1}
        found.add(changed.tobytes())
    expected = {image.tobytes(), image[:, ::-1].tobytes(), image[::-1].tobytes()}
    expected.update(baseline.rotate(image, angle).tobytes() for angle in (90, 180, 270))
    expected.add(baseline.shrink(image, 0.8).tobytes())
    assert found == expected


def test_category_maps_keep_their_ids():
    ids = np.zeros((32, 32), np.uint8)
    ids[4:12, 4:12] = 1
    ids[20:28, 20:28] = 2
    arguments = {"angles": [], "shrinks": [], "vflip": False}
    transform = build_transform("baseline", arguments)
    image = cv2.merge([ids * 100] * 3)
    for seed in range(8):
        changed, labels = augment(transform, image, ids, seed)
        assert np.array_equal(changed[..., 0], labels * 100)


def test_pipeline_can_go_to_a_worker():
    transform = pickle.loads(pickle.dumps(build_transform("baseline", AUTHORS)))
    image = np.zeros((32, 32, 3), np.uint8)
    augment(transform, image, image[..., 0], 0)


def test_flips_follow_from_the_arguments():
    assert flips_of(build_transform("baseline")) == {"horizontal", "vertical"}
    assert flips_of(build_transform("baseline", {"vflip": False})) == {"horizontal"}


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("baseline", {"blur": 3}, "augmentation baseline does not take blur. Its arguments are"),
        ("flips", {"p": 1}, "augmentation flips does not take p. Its arguments are: none"),
        ("baseline", {"angles": "all"}, "angles is 'all', expected a list of a number"),
        ("baseline", {"shrinks": [2]}, "shrinks is 2, expected a number within 0.05..1"),
        ("baseline", {"barrel_centers": [[1, 2, 3]]}, "centers has .1, 2, 3., expected two"),
        ("mine.yaml", {"p": 1}, "mine.yaml holds its own arguments"),
    ],
)
def test_wrong_arguments_are_errors(name, arguments, message):
    with pytest.raises(InputError, match=message):
        build_transform(name, arguments)


def test_picture_that_is_too_small_to_shrink_is_an_error():
    transform = build_transform("baseline", {"hflip": False, "vflip": False, "angles": [],
                                             "shrinks": [0.2]})  # fmt: skip
    image = np.zeros((16, 16, 3), np.uint8)
    with pytest.raises(InputError, match="16 x 16 pixels can't be shrunk to 0.2 of it"):
        for seed in range(10):
            augment(transform, image, image[..., 0], seed)
