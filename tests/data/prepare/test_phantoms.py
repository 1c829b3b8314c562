import cv2
import numpy as np
import pytest

from ovseg.core.errors import InputError
from ovseg.data.manifest import category_names, image_categories
from ovseg.data.pairs import find_pairs, read_category_map, read_mask, verify_pairs
from ovseg.data.prepare.phantoms import make_phantom, make_phantom_with_category, write_phantoms


def best_threshold_dice(image, mask) -> float:
    """The best Dice that any threshold, of either sign, on the plain or the smoothed image reaches."""
    best = 0.0
    for grey in (image[..., 0], cv2.GaussianBlur(image[..., 0], (0, 0), 2)):
        for level in range(0, 256, 8):
            for pred in (grey > level, grey <= level):
                best = max(best, 2 * (pred & (mask > 0)).sum() / (pred.sum() + mask.sum()))
    return best


def test_same_seed_gives_the_same_pixels():
    for first, second in zip(make_phantom(5, 64), make_phantom(5, 64), strict=True):
        assert np.array_equal(first, second)


def test_seeds_differ():
    assert not np.array_equal(make_phantom(5, 64)[0], make_phantom(6, 64)[0])


def test_every_phantom_has_a_lesion_inside_the_sector():
    for seed in range(12):
        image, mask = make_phantom(seed, 96)
        assert (
            image.shape == (96, 96, 3)
            and image.dtype == np.uint8
            and set(np.unique(mask)) == {0, 1}
        )
        assert 0.01 < mask.mean() < 0.3
        assert (image[[0, -1]][:, [0, -1]] == 0).all()


def test_no_threshold_finds_the_lesion():
    scores = [best_threshold_dice(*make_phantom(seed, 128)) for seed in range(24)]
    assert np.mean(scores) < 0.45


def test_speckle_has_rayleigh_contrast():
    """Fully developed speckle's envelope has mean / deviation 1.91; here before log compression, in plain tissue."""
    from ovseg.data.prepare.phantoms import _speckle

    envelope = _speckle(np.random.default_rng(0), np.zeros((384, 256)))[100:300, 40:200]
    assert envelope.mean() / envelope.std() == pytest.approx(1.91, abs=0.12)


def test_phantom_tree_is_a_valid_dataset(phantom_root):
    counts = {}
    for split in ("train", "valid", "test"):
        pairs = find_pairs(phantom_root / split / "images", phantom_root / split / "masks")
        assert verify_pairs(pairs) == []
        counts[split] = len(pairs)
    assert counts == {"train": 14, "valid": 3, "test": 3}


def test_category_maps_are_the_masks_with_the_ids_of_the_manifest(phantom_root):
    names = category_names(phantom_root, classes=5)
    assert names == ["cyst", "haze", "solid", "mixed"]
    for split in ("train", "valid", "test"):
        for stem, name in image_categories(phantom_root, split).items():
            ids = read_category_map(phantom_root / split / "categories" / f"{stem}.png", classes=5)
            mask = read_mask(phantom_root / split / "masks" / f"{stem}.png")
            assert np.array_equal(ids, mask * (names.index(name) + 1))


def test_category_does_not_change_the_pixels():
    image, mask, category = make_phantom_with_category(5, 64)
    assert all(
        np.array_equal(a, b) for a, b in zip(make_phantom(5, 64), (image, mask), strict=True)
    )
    assert {make_phantom_with_category(seed, 32)[2] for seed in range(30)} == {
        1,
        2,
        3,
        4,
    } and category in (1, 2, 3, 4)


def test_too_small_or_too_few_is_an_error(tmp_path):
    with pytest.raises(InputError, match="too small to draw"):
        make_phantom(0, 16)
    with pytest.raises(InputError, match="too few to split"):
        write_phantoms(tmp_path / "p", 3)


def test_existing_dataset_is_kept(phantom_root):
    with pytest.raises(InputError, match="already exists"):
        write_phantoms(phantom_root, 20, size=64)
