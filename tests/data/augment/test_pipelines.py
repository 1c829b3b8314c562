import albumentations as A
import numpy as np
import pytest

from ovseg.core.errors import InputError
from ovseg.data.augment.pipelines import PIPELINES, GaussianNoise, augment, build_transform
from ovseg.data.prepare.phantoms import make_phantom


def test_none_is_no_transform():
    assert build_transform("none") is None


@pytest.mark.parametrize("name", [name for name in PIPELINES if name != "none"])
def test_pipeline_is_a_function_of_the_seed(name):
    image, mask = make_phantom(1, 64)
    first, again, other = (augment(build_transform(name), image, mask, seed) for seed in (4, 4, 5))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first[0], other[0])


@pytest.mark.parametrize("name", [name for name in PIPELINES if name != "none"])
def test_pipeline_keeps_the_mask_binary_and_the_dtype(name):
    transform = build_transform(name)
    for seed in range(20):
        image, mask = augment(transform, *make_phantom(seed, 64), seed)
        assert image.dtype == mask.dtype == np.uint8 and set(np.unique(mask)) <= {0, 1}


def test_image_and_mask_move_together():
    image, mask = make_phantom(2, 64)
    image = np.repeat(mask[..., None] * 255, 3, 2)
    moved, moved_mask = augment(build_transform("flips"), image, mask, 8)
    assert np.array_equal(moved[..., 0] // 255, moved_mask)


def test_transforms_of_a_pipeline_draw_independently():
    """albumentations 2.0.8 seeds every transform alike: then the picture is turned over both ways or not at all."""
    image, mask = make_phantom(2, 64)
    transform = build_transform("flips")
    views = {
        "none": image,
        "across": image[:, ::-1],
        "down": image[::-1],
        "both": image[::-1, ::-1],
    }
    outputs = [augment(transform, image, mask, seed)[0] for seed in range(200)]
    for view in views.values():
        assert 0.15 < np.mean([np.array_equal(output, view) for output in outputs]) < 0.35


@pytest.mark.parametrize("suffix", ["yaml", "json"])
def test_pipeline_is_read_from_a_file(tmp_path, suffix):
    path = tmp_path / f"mine.{suffix}"
    A.save(A.Compose([A.HorizontalFlip(p=1)]), path, data_format=suffix)
    image, mask = make_phantom(2, 64)
    assert np.array_equal(augment(build_transform(str(path)), image, mask, 0)[0], image[:, ::-1])


def test_bad_pipelines_are_errors(tmp_path):
    with pytest.raises(
        InputError, match="Unknown augmentation 'heavy'. Choose one of: flips, none, standard"
    ):
        build_transform("heavy")
    with pytest.raises(InputError, match="There is no augmentation file"):
        build_transform(str(tmp_path / "gone.yaml"))
    (tmp_path / "odd.json").write_text("[1]")
    with pytest.raises(InputError, match="is not an albumentations pipeline"):
        build_transform(str(tmp_path / "odd.json"))
    A.save(A.HorizontalFlip(), tmp_path / "flip.json")
    with pytest.raises(InputError, match="expected an albumentations Compose"):
        build_transform(str(tmp_path / "flip.json"))


def test_pipeline_that_changes_the_size_is_an_error():
    with pytest.raises(InputError, match="must keep size and dtype"):
        augment(A.Compose([A.Resize(32, 32)]), *make_phantom(2, 64), 0)


def test_noise_is_that_of_albumentations():
    """Theirs is a twentieth weaker than asked for at most: it cuts decimals off, ours rounds."""
    grey, mask = np.full((256, 256, 3), 128, np.uint8), np.zeros((256, 256), np.uint8)
    own, theirs = (
        A.Compose([GaussianNoise((0.04, 0.04), p=1)]),
        A.Compose([A.GaussNoise((0.04, 0.04), p=1)]),
    )
    drawn = [
        augment(step, grey, mask, seed)[0].astype(float) - 128
        for step, seed in ((own, 1), (theirs, 1), (own, 2))
    ]
    for noise, least in zip(drawn, (0.99, 0.95, 0.99), strict=True):
        assert (least < noise.std((0, 1)) / (0.04 * 255)).all() and (
            noise.std((0, 1)) < 1.01 * 0.04 * 255
        ).all()
        assert (abs(noise.mean((0, 1))) < 0.15).all()
        assert (
            abs(np.corrcoef(noise.reshape(-1, 3).T) - np.eye(3)).max() < 0.03
        )  # each channel has its own
    assert not np.array_equal(drawn[0], drawn[2])


def test_noise_stays_in_range_and_has_checked_bounds():
    edges = np.repeat(np.array([[0], [255]], np.uint8), 64, 1)[..., None].repeat(3, 2)
    noisy = GaussianNoise((0.05, 0.05), p=1)(image=edges)["image"]
    assert (
        noisy[0].max() < 128 < noisy[1].min() and (noisy[0] == 0).any() and (noisy[1] == 255).any()
    )
    with pytest.raises(InputError, match="deviation is"):
        GaussianNoise((0.5, 0.1))
