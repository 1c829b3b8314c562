import cv2
import numpy as np
import pytest

from ovseg.core.errors import InputError
from ovseg.data.manifest import category_names, image_categories, read_folds
from ovseg.data.masks import read_category_map, read_mask
from ovseg.data.pairs import find_pairs, verify_pairs
from ovseg.data.prepare.phantoms import (
    BEAMS,
    DEPTHS,
    make_phantom,
    make_phantom_with_category,
    speckle_envelope,
    write_phantoms,
)


def best_threshold_dice(image: np.ndarray, mask: np.ndarray) -> float:
    """The best Dice that a threshold of either sign reaches on the plain or the smoothed image."""
    plain = image[..., 0]
    smooth = cv2.GaussianBlur(plain, (0, 0), 2)
    scores = []
    for grey in (plain, smooth):
        for level in range(0, 256, 8):
            for pred in (grey > level, grey <= level):
                overlap = (pred & (mask > 0)).sum()
                scores.append(2 * overlap / (pred.sum() + mask.sum()))
    return max(scores)


def test_same_seed_gives_the_same_pixels():
    image, mask = make_phantom(5, 64)
    same_image, same_mask = make_phantom(5, 64)
    assert np.array_equal(image, same_image)
    assert np.array_equal(mask, same_mask)


def test_seeds_differ():
    assert not np.array_equal(make_phantom(5, 64)[0], make_phantom(6, 64)[0])


@pytest.mark.parametrize("seed", range(12))
def test_every_phantom_has_a_lesion_inside_the_sector(seed):
    image, mask = make_phantom(seed, 96)
    assert image.shape == (96, 96, 3)
    assert image.dtype == np.uint8
    assert set(np.unique(mask)) == {0, 1}
    assert 0.01 < mask.mean() < 0.3
    corners = image[[0, -1]][:, [0, -1]]
    assert (corners == 0).all()


def test_no_threshold_finds_the_lesion():
    scores = [best_threshold_dice(*make_phantom(seed, 96)) for seed in range(24)]
    assert np.mean(scores) < 0.45


def test_speckle_has_rayleigh_contrast():
    """The envelope of fully developed speckle has mean / deviation 1.91, here in plain tissue."""
    envelope = speckle_envelope(np.random.default_rng(0), np.zeros((DEPTHS, BEAMS)))
    middle = envelope[100:300, 40:200]
    assert middle.mean() / middle.std() == pytest.approx(1.91, abs=0.12)


def test_phantom_tree_is_a_valid_dataset(phantom_root):
    counts = {}
    for split in ("train", "valid", "test"):
        pairs = find_pairs(phantom_root / split / "images", phantom_root / split / "masks")
        assert all(mask.lesion for mask in verify_pairs(pairs))
        counts[split] = len(pairs)
    assert counts == {"train": 14, "valid": 3, "test": 3}


def test_folds_are_in_turn_over_train_and_valid(fold_root):
    folds = read_folds(fold_root, 3)
    for number in range(17):
        split = "train" if number < 14 else "valid"
        assert folds.pop((split, f"phantom_{number}")) == number % 3
    assert not folds


def test_category_maps_are_the_masks_with_the_ids_of_the_manifest(phantom_root):
    names = category_names(phantom_root, classes=5)
    assert names == ["cyst", "haze", "solid", "mixed"]
    for split in ("train", "valid", "test"):
        for stem, name in image_categories(phantom_root, split).items():
            ids = read_category_map(phantom_root / split / "categories" / f"{stem}.png", classes=5)
            mask = read_mask(phantom_root / split / "masks" / f"{stem}.png")
            assert np.array_equal(ids, mask * (names.index(name) + 1))


def test_phantom_with_category_has_the_pixels_of_the_one_without():
    image, mask = make_phantom(5, 64)
    same_image, same_mask, category = make_phantom_with_category(5, 64)
    assert np.array_equal(image, same_image)
    assert np.array_equal(mask, same_mask)
    assert category in (1, 2, 3, 4)


def test_every_category_is_drawn():
    categories = {make_phantom_with_category(seed, 32)[2] for seed in range(20)}
    assert categories == {1, 2, 3, 4}


def test_the_same_seed_draws_the_same_lesion_in_every_look():
    grey, mask, category = make_phantom_with_category(3, 64)
    amber, same_mask, same_category = make_phantom_with_category(3, 64, "ceus")
    both, two_masks, _ = make_phantom_with_category(3, 64, "panels")
    assert np.array_equal(mask, same_mask)
    assert category == same_category
    assert np.array_equal(both, np.concatenate([grey, amber], axis=1))
    assert np.array_equal(two_masks, np.concatenate([mask, mask], axis=1))


def test_contrast_agent_is_amber_on_black():
    for seed in range(6):
        image, _, _ = make_phantom_with_category(seed, 64, "ceus")
        red, green, blue = image.reshape(-1, 3).T.astype(int)
        assert (red >= green).all() and (green >= blue).all()
        grey, _, _ = make_phantom_with_category(seed, 64)
        assert np.median(green) < np.median(grey[..., 1])


def test_only_what_has_blood_is_enhanced():
    """Fluid is black with contrast agent, whatever it is in B-mode; solid tumours are not."""
    brightness: dict[int, list[float]] = {}
    for seed in range(40):
        image, mask, category = make_phantom_with_category(seed, 96, "ceus")
        inner = cv2.erode(mask, np.ones((9, 9), np.uint8)) > 0
        if inner.any():
            brightness.setdefault(category, []).append(image[inner, 0].mean())
    means = {category: np.mean(values) for category, values in brightness.items()}
    cyst, haze, solid, _ = (means[category] for category in (1, 2, 3, 4))
    assert max(cyst, haze) < 0.5 * solid


def test_looks_are_chosen_by_the_command(run_command, tmp_path):
    command = ["make_phantoms", "--count", 10, "--size", 32, "--output"]
    assert run_command(*command, tmp_path / "panels", "--look", "panels") == 0
    pairs = find_pairs(tmp_path / "panels/train/images", tmp_path / "panels/train/masks")
    assert read_mask(pairs[0].mask_path).shape == (32, 64)
    verify_pairs(pairs)
    assert run_command(*command, tmp_path / "mri", "--look", "mri") == 2


def test_too_small_or_too_few_is_an_error(tmp_path):
    with pytest.raises(InputError, match="too small to draw"):
        make_phantom(0, 16)
    with pytest.raises(InputError, match="too few to split"):
        write_phantoms(tmp_path / "p", 3)
    with pytest.raises(InputError, match="seed of phantoms is -1"):
        write_phantoms(tmp_path / "p", 10, seed=-1)


def test_existing_dataset_is_kept(phantom_root):
    with pytest.raises(InputError, match="already exists"):
        write_phantoms(phantom_root, 20, size=64)
