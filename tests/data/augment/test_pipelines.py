import random
import subprocess
import sys

import albumentations as A
import cv2
import numpy as np
import pytest

from ovseg.core.errors import InputError
from ovseg.data.augment import pipelines
from ovseg.data.augment.calipers import find_calipers
from ovseg.data.augment.pipelines import PIPELINES, GaussianNoise, augment, build_transform
from ovseg.data.prepare.phantoms import make_phantom

CHANGING = [name for name in PIPELINES if name != "none"]
ULTRASOUND = ("ultrasound_light", "ultrasound_strong")
ECHOES = (
    pipelines.DepthAttenuation,
    pipelines.AcousticShadow,
    pipelines.GainChange,
    pipelines.SpeckleChange,
    pipelines.Haze,
)
PRINT_CHECKSUMS = """
import zlib
from ovseg.data.augment.pipelines import augment, build_transform
from ovseg.data.prepare.phantoms import make_phantom
for name in {names}:
    for seed in range(4):
        image, mask = augment(build_transform(name), *make_phantom(1, 64), seed)
        print(zlib.crc32(image.tobytes()), zlib.crc32(mask.tobytes()))
"""


def test_none_is_no_transform():
    assert build_transform("none") is None


@pytest.mark.parametrize("name", CHANGING)
def test_pipeline_is_a_function_of_the_seed(name):
    image, mask = make_phantom(1, 64)
    first = augment(build_transform(name), image, mask, 4)
    again = augment(build_transform(name), image, mask, 4)
    other = augment(build_transform(name), image, mask, 5)
    assert np.array_equal(first[0], again[0])
    assert np.array_equal(first[1], again[1])
    assert not np.array_equal(first[0], other[0])


@pytest.mark.parametrize("name", CHANGING)
def test_pipeline_keeps_the_mask_binary_and_the_dtype(name):
    transform = build_transform(name)
    for seed in range(20):
        image, mask = augment(transform, *make_phantom(seed, 64), seed)
        assert image.dtype == np.uint8
        assert mask.dtype == np.uint8
        assert set(np.unique(mask)) <= {0, 1}


def test_image_and_mask_move_together():
    _, mask = make_phantom(2, 64)
    image = np.repeat(mask[..., None] * 255, 3, 2)
    moved, moved_mask = augment(build_transform("flips"), image, mask, 8)
    assert np.array_equal(moved[..., 0] // 255, moved_mask)


def test_transforms_of_a_pipeline_draw_independently():
    """albumentations 2.0.8 seeds every transform alike: both flips together or none."""
    image, mask = make_phantom(2, 64)
    transform = build_transform("flips")
    outputs = [augment(transform, image, mask, seed)[0] for seed in range(200)]
    for view in (image, image[:, ::-1], image[::-1], image[::-1, ::-1]):
        same = [np.array_equal(output, view) for output in outputs]
        assert 0.15 < np.mean(same) < 0.35


def test_pipelines_draw_the_same_in_another_process(capsys):
    code = PRINT_CHECKSUMS.format(names=CHANGING)
    other = subprocess.check_output([sys.executable, "-c", code], text=True)
    exec(code, {})
    assert capsys.readouterr().out == other
    assert len(set(other.splitlines())) > 10


def test_window_of_mmotu_is_384_of_448_and_moves_the_mask_with_the_image():
    _, mask = make_phantom(2, 448)
    image = np.repeat(mask[..., None] * 255, 3, 2)
    transform = build_transform("mmotu")
    transform.transforms = transform.transforms[:2]  # without the distortion of colours
    shares = []
    for seed in range(20):
        window, window_mask = augment(transform, image, mask, seed)
        assert window.shape == (384, 384, 3)
        assert window_mask.shape == (384, 384)
        differs = (window[..., 0] > 127) != window_mask
        assert differs.mean() < 0.01  # half a pixel along the outline
        shares.append(window_mask.mean() / mask.mean())
    assert min(shares) < 0.6  # at half its size a lesion has a quarter of its pixels
    assert max(shares) > 2


def test_window_at_scale_one_is_a_part_of_the_image():
    image, mask = make_phantom(2, 64)
    step = pipelines.RandomWindow(share=0.5, scale=(1, 1), largest=1)
    _, window_mask = augment(A.Compose([step]), image, mask, 3)
    assert window_mask.shape == (32, 32)
    places = np.lib.stride_tricks.sliding_window_view(mask, (32, 32))
    assert (places == window_mask).all((2, 3)).any()


def test_window_of_one_class_is_drawn_again():
    mask = np.zeros((64, 64), np.uint8)
    mask[:, 32:] = 1
    image = np.repeat(mask[..., None], 3, 2)
    shares = []
    for seed in range(30):
        step = pipelines.RandomWindow(share=0.25, scale=(1, 1), largest=0.75)
        shares.append(augment(A.Compose([step]), image, mask, seed)[1].mean())
    in_range = [0.25 <= share <= 0.75 for share in shares]
    assert np.mean(in_range) > 0.7  # without it a sixth


def test_photometric_distortion_has_the_ranges_of_mmsegmentation():
    image = np.full((8, 8, 3), 100, np.uint8)
    transform = build_transform("photometric")
    greys = []
    for seed in range(400):
        changed = augment(transform, image, np.zeros((8, 8), np.uint8), seed)[0]
        greys.append(int(changed[0, 0, 0]))
    # 100 - 32, then half of it; 100 + 32, then half as much again.
    assert 34 <= min(greys) < 45
    assert 180 < max(greys) <= 198
    unchanged = np.mean([grey == 100 for grey in greys])
    assert 0.18 < unchanged < 0.32  # neither brightness nor contrast; grey has no colour


@pytest.mark.parametrize("suffix", ["yaml", "json"])
def test_pipeline_is_read_from_a_file(tmp_path, suffix):
    path = tmp_path / f"mine.{suffix}"
    A.save(A.Compose([A.HorizontalFlip(p=1)]), path, data_format=suffix)
    image, mask = make_phantom(2, 64)
    assert np.array_equal(augment(build_transform(str(path)), image, mask, 0)[0], image[:, ::-1])


@pytest.mark.parametrize("name", ULTRASOUND)
def test_ultrasound_pipeline_is_saved_and_loaded_as_yaml(name, tmp_path, marked_phantom):
    path = tmp_path / "mine.yaml"
    built = build_transform(name)
    A.save(built, path, data_format="yaml")
    loaded = build_transform(str(path))
    for seed in range(6):
        image, mask = augment(built, *marked_phantom, seed)
        image_of_file, mask_of_file = augment(loaded, *marked_phantom, seed)
        assert np.array_equal(image, image_of_file)
        assert np.array_equal(mask, mask_of_file)


def test_bad_pipelines_are_errors(tmp_path):
    unknown = "Unknown augmentation 'heavy'. Choose one of: .*flips, .*none, .*standard"
    with pytest.raises(InputError, match=unknown):
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


@pytest.mark.parametrize(
    ("transform", "arguments"),
    [
        (pipelines.DepthAttenuation, {"decibel": (9, 3)}),
        (pipelines.Haze, {"depth": (0, 2)}),
        (pipelines.SectorAffine, {"scale": (0, 1)}),
        (pipelines.GaussianNoise, {"deviation": (0.5, 0.1)}),
    ],
)
def test_values_out_of_range_are_errors(transform, arguments):
    (name,) = arguments
    with pytest.raises(InputError, match=f"{name} is .*, expected the smallest and the larg"):
        transform(**arguments)


@pytest.mark.parametrize(
    ("transform", "changed_share"),
    [
        (pipelines.DepthAttenuation, 0.05),
        (pipelines.AcousticShadow, 0.05),
        (pipelines.GainChange, 0.05),
        (pipelines.SpeckleChange, 0.05),
        (pipelines.Haze, 0.001),
        (pipelines.SectorAffine, 0.001),
        (pipelines.DrawCalipers, 0.001),
        (pipelines.RemoveCalipers, 0.001),
    ],
)
def test_every_transform_changes_the_picture_and_keeps_its_type(
    transform, changed_share, marked_phantom
):
    image, mask = marked_phantom
    changed, changed_mask = augment(A.Compose([transform(p=1)]), image, mask, 3)
    assert changed.dtype == np.uint8
    assert changed_mask.dtype == np.uint8
    assert changed.shape == image.shape
    assert np.mean(changed != image) > changed_share
    moves = transform is pipelines.SectorAffine
    assert np.array_equal(changed_mask, mask) == (not moves)


@pytest.mark.parametrize("transform", [*ECHOES, pipelines.RemoveCalipers])
def test_black_stays_black_outside_the_sector(transform, outside):
    compose = A.Compose([transform(p=1)])
    for seed in range(12):
        no_beams = outside(seed, 128)
        changed, _ = augment(compose, *make_phantom(seed, 128), seed)
        assert no_beams.sum() > 1250
        assert not changed[no_beams].any()


@pytest.mark.parametrize("transform", [*ECHOES, pipelines.SectorAffine, pipelines.RemoveCalipers])
def test_black_picture_stays_black(transform):
    black = np.zeros((64, 64, 3), np.uint8)
    changed, _ = augment(A.Compose([transform(p=1)]), black, black[..., 0], 1)
    assert not changed.any()


def test_strong_calipers_shows_a_picture_with_fewer_marks_and_with_more(marked_phantom):
    image, mask = marked_phantom
    transform = build_transform("strong_calipers")
    transform.transforms = transform.transforms[:2]  # without what moves and colours the picture
    marks = (find_calipers(image) > 0).sum()
    counts = []
    for seed in range(100):
        changed, _ = augment(transform, image, mask, seed)
        counts.append((find_calipers(changed) > 0).sum())
    counts = np.array(counts)
    assert 0.35 < np.mean(counts == marks) < 0.65  # 0.7 * 0.7 expected
    assert 0.1 < np.mean(counts == 0) < 0.35  # 0.3 * 0.7
    assert np.mean(counts > marks) > 0.1


@pytest.mark.parametrize("name", ULTRASOUND)
def test_ultrasound_pipeline_keeps_the_corners_black_and_the_labels(name):
    transform = build_transform(name)
    for seed in range(12):
        image, mask = make_phantom(seed, 128)
        changed, labels = augment(transform, image, mask * 7, seed)
        # Beside a sector, at any rotation.
        assert not changed[:20, :10].any()
        assert not changed[:20, -10:].any()
        assert set(np.unique(labels)) <= {0, 7}


def test_rotation_moves_image_and_mask_alike():
    _, mask = make_phantom(2, 128)
    image = np.repeat(mask[..., None] * 255, 3, 2)
    transform = A.Compose([pipelines.SectorAffine(p=1)])
    changed, changed_mask = augment(transform, image, mask, 5)
    assert np.mean((changed[..., 0] > 127) != changed_mask) < 0.01
    assert not np.array_equal(changed_mask, mask)


@pytest.mark.parametrize("name", ULTRASOUND)
def test_no_global_random_state_is_touched(name, marked_phantom):
    random.seed(5)
    np.random.seed(5)
    state = random.getstate()
    numpy_state = np.random.get_state()[1].tolist()
    for seed in range(5):
        augment(build_transform(name), *marked_phantom, seed)
    assert random.getstate() == state
    assert np.random.get_state()[1].tolist() == numpy_state


def draw_noise(transform: A.BasicTransform, seed: int) -> np.ndarray:
    """What a transform adds to a grey picture, in levels."""
    image = np.full((256, 256, 3), 128, np.uint8)
    mask = np.zeros((256, 256), np.uint8)
    noisy, _ = augment(A.Compose([transform]), image, mask, seed)
    return noisy.astype(float) - 128


@pytest.mark.parametrize(
    ("transform", "least"),
    [
        (GaussianNoise((0.04, 0.04), p=1), 0.99),
        # Up to a twentieth weaker than asked for: it cuts decimals off, ours rounds.
        (A.GaussNoise((0.04, 0.04), p=1), 0.95),
    ],
)
def test_noise_is_that_of_albumentations(transform, least):
    noise = draw_noise(transform, 1)
    deviations = noise.std((0, 1)) / (0.04 * 255)
    assert (deviations > least).all()
    assert (deviations < 1.01).all()
    assert (abs(noise.mean((0, 1))) < 0.15).all()
    correlation = np.corrcoef(noise.reshape(-1, 3).T)
    assert abs(correlation - np.eye(3)).max() < 0.03  # each channel has its own noise


def test_noise_follows_the_seed():
    noise = GaussianNoise((0.04, 0.04), p=1)
    assert not np.array_equal(draw_noise(noise, 1), draw_noise(noise, 2))


def test_noise_stays_in_range():
    image = np.zeros((2, 64, 3), np.uint8)
    image[1] = 255
    black, white = GaussianNoise((0.05, 0.05), p=1)(image=image)["image"]
    assert black.min() == 0
    assert black.max() < 128
    assert white.max() == 255
    assert white.min() > 128


def test_mask_stays_binary_whatever_a_file_says(tmp_path):
    transform = A.Compose([A.Rotate(limit=(30, 30), p=1)], mask_interpolation=cv2.INTER_LINEAR)
    A.save(transform, tmp_path / "own.yaml", data_format="yaml")
    image, mask = make_phantom(1, 64)
    _, rotated = augment(build_transform(str(tmp_path / "own.yaml")), image, mask * 255, 0)
    assert set(np.unique(rotated)) == {0, 255}


@pytest.mark.parametrize(
    ("transform", "arguments"),
    [
        (pipelines.GainChange, {"tgc": -1}),
        (pipelines.DrawCalipers, {"on_lesion": 30}),
        (pipelines.Haze, {"depth": ["a", "b"]}),
    ],
)
def test_number_that_makes_no_sense_is_an_error(transform, arguments):
    [name] = arguments
    with pytest.raises(InputError, match=f"{name} is "):
        transform(**arguments)
