import random
import subprocess
import sys

import albumentations as A
import cv2
import numpy as np
import pytest

from ovseg.core.errors import InputError
from ovseg.data.augment import pipelines as T
from ovseg.data.augment import ultrasound
from ovseg.data.augment.calipers import (
    caliper_ends,
    draw_caliper,
    draw_label,
    find_calipers,
    remove_calipers,
)
from ovseg.data.augment.pipelines import augment, build_transform
from ovseg.data.augment.sector import find_sector
from ovseg.data.prepare.phantoms import make_phantom

ECHOES = (T.DepthAttenuation, T.AcousticShadow, T.GainChange, T.SpeckleChange, T.Haze)
ALL = (*ECHOES, T.SectorAffine, T.DrawCalipers, T.RemoveCalipers)
NAMES = ("ultrasound_light", "ultrasound_strong")
PRINT_SUMS = """
import zlib
from ovseg.data.prepare.phantoms import make_phantom
from ovseg.data.augment.pipelines import PIPELINES, augment, build_transform
pair = make_phantom(1, 64)
seeds = range(4)
print([zlib.crc32(augment(build_transform(n), *pair, s)[0].tobytes()) for n in PIPELINES if n != "none" for s in seeds])
"""


def marked_phantom(seed: int = 1, size: int = 128) -> tuple[np.ndarray, np.ndarray]:
    image, mask = make_phantom(seed, size)
    return draw_caliper(image, ((40, 60), (80, 64)), (255, 255, 0)), mask


def outside(seed: int, size: int) -> np.ndarray:
    """Where a phantom has no beams, from the geometry that `make_phantom` draws first."""
    rng = np.random.default_rng(seed)
    half_angle, near = rng.uniform(0.55, 0.85), rng.uniform(0.08, 0.2)
    column, row = np.meshgrid((np.arange(size) + 0.5) / size, (np.arange(size) + 0.5) / size)
    dx, dy = (column - 0.5) / 0.95, (row - 0.02 + near * 0.5) / 0.95
    return (
        (np.hypot(dx, dy) > 1.01)
        | (np.hypot(dx, dy) < near - 0.01)
        | (np.abs(np.arctan2(dx, dy)) > half_angle + 0.02)
    )


@pytest.mark.parametrize("transform", ALL)
def test_every_transform_changes_the_picture_and_keeps_its_type(transform):
    image, mask = marked_phantom()
    changed, moved = augment(A.Compose([transform(p=1)]), image, mask, 3)
    assert changed.dtype == moved.dtype == np.uint8 and changed.shape == image.shape
    assert np.mean(changed != image) > (0.05 if transform in ECHOES[:4] else 0.001)
    assert np.array_equal(moved, mask) == (transform is not T.SectorAffine)


@pytest.mark.parametrize("transform", [*ECHOES, T.RemoveCalipers])
def test_black_stays_black_outside_the_sector(transform):
    compose = A.Compose([transform(p=1)])
    for seed in range(12):
        image, mask = make_phantom(seed, 256)
        assert (
            outside(seed, 256).sum() > 5000
            and not augment(compose, image, mask, seed)[0][outside(seed, 256)].any()
        )


@pytest.mark.parametrize("name", NAMES)
def test_pipeline_keeps_the_corners_black_and_the_labels(name):
    transform = build_transform(name)
    for seed in range(12):
        image, mask = make_phantom(seed, 128)
        changed, moved = augment(transform, image, mask * 7, seed)
        assert (
            not changed[:20, :10].any() and not changed[:20, -10:].any()
        )  # beside a sector, however it is turned
        assert set(np.unique(moved)) <= {0, 7}


def test_turning_moves_image_and_mask_alike():
    _, mask = make_phantom(2, 128)
    changed, moved = augment(
        A.Compose([T.SectorAffine(p=1)]), np.repeat(mask[..., None] * 255, 3, 2), mask, 5
    )
    assert np.mean((changed[..., 0] > 127) != moved) < 0.01 and not np.array_equal(moved, mask)


def test_turning_about_the_apex_leaves_a_sector_with_the_same_apex():
    image, _ = make_phantom(4, 256)
    sector = find_sector(image)
    assert np.allclose(
        find_sector(ultrasound.turn(image, sector, 6, 0.9)).apex, sector.apex, atol=8
    )


@pytest.mark.parametrize("name", NAMES)
def test_no_global_random_state_is_touched(name):
    random.seed(5)
    np.random.seed(5)
    before = (random.getstate(), np.random.get_state()[1].tolist())
    for seed in range(5):
        augment(build_transform(name), *marked_phantom(), seed)
    assert before == (random.getstate(), np.random.get_state()[1].tolist())


def test_pipelines_agree_in_fresh_processes():
    outputs = {
        subprocess.check_output([sys.executable, "-c", PRINT_SUMS], text=True) for _ in range(2)
    }
    assert len(outputs) == 1 and len(set(outputs.pop().split(","))) > 10


@pytest.mark.parametrize("name", NAMES)
def test_pipeline_is_saved_and_loaded_as_yaml(name, tmp_path):
    A.save(build_transform(name), tmp_path / "mine.yaml", data_format="yaml")
    pair, loaded = marked_phantom(), build_transform(str(tmp_path / "mine.yaml"))
    for seed in range(6):
        for ours, theirs in zip(
            augment(build_transform(name), *pair, seed), augment(loaded, *pair, seed), strict=True
        ):
            assert np.array_equal(ours, theirs)


def test_sector_of_a_phantom_is_found_with_its_apex_and_radii():
    for seed in range(10):
        rng = np.random.default_rng(seed)
        _, near = rng.uniform(0.55, 0.85), rng.uniform(0.08, 0.2)
        sector = find_sector(make_phantom(seed, 256)[0])
        inside = sector.enlarge(sector.mask.astype(np.float32)) > 0.5
        assert np.mean(inside != ~outside(seed, 256)) < 0.05
        assert sector.apex == pytest.approx((128, 256 * (0.02 - near * 0.5)), abs=20)
        assert (sector.near, sector.far) == pytest.approx((256 * 0.95 * near, 256 * 0.95), abs=20)


def test_a_black_cyst_at_the_rim_belongs_to_the_sector_and_the_probe_does_not():
    image = np.full((200, 200, 3), 90, np.uint8)
    cv2.circle(image, (100, 0), 40, (0, 0, 0), -1)  # the probe's face
    cv2.circle(image, (0, 120), 30, (0, 0, 0), -1)  # a cyst that the side cuts
    mask = find_sector(image).enlarge(find_sector(image).mask)
    assert mask[120, 5] and not mask[10, 100] and mask[60, 100]


def test_a_black_picture_stays_as_it_is():
    black = np.zeros((64, 64, 3), np.uint8)
    for transform in (*ECHOES, T.SectorAffine, T.RemoveCalipers):
        assert not augment(A.Compose([transform(p=1)]), black, black[..., 0], 1)[0].any()


def test_attenuation_is_linear_in_depth_in_decibel():
    image = np.full((256, 256, 3), 200, np.uint8)
    sector = find_sector(image)
    lost = (200 - ultrasound.attenuate(image, sector, 12)[:, 128, 0]) / ultrasound.LEVELS_PER_DB
    assert lost[-1] == pytest.approx(12, abs=1) and np.ptp(np.diff(lost)) < 0.3


def test_gain_lifts_echoes_but_no_black():
    image = np.full((64, 64, 3), 100, np.uint8)
    image[20:30] = 0
    changed = ultrasound.change_gain(image, find_sector(image), np.full(8, 4.0))
    assert not changed[20:30].any() and np.all(changed[40:50] == 117)  # 4 dB are 17 levels


def test_shadow_lies_behind_its_absorber_along_the_beam():
    image = np.full((256, 256, 3), 200, np.uint8)
    shadowed = ultrasound.cast_shadow(
        image, find_sector(image), beam=0, start=0.5, width=0.1, decibel=10
    )
    assert (
        np.all(shadowed[:80] == 200)
        and shadowed[-20, 128, 0] == 200 - 42
        and shadowed[-20, 20, 0] == 200
    )


def test_haze_adds_powers():
    image = np.full((256, 256, 3), 85, np.uint8)  # 20 dB
    flat = np.zeros((256, 256), np.float32)
    hazed = ultrasound.add_haze(image, find_sector(image), flat, depth=0.5, width=100, decibel=20)
    assert hazed[128, 128, 0] == pytest.approx(85 + 13, abs=1)  # two equal powers are 3 dB more
    assert np.array_equal(ultrasound.add_haze(image, find_sector(image), flat, 0.5, 100, 0), image)


def test_speckle_varies_by_the_decibels_of_theory():
    texture = ultrasound.speckle_texture(np.random.default_rng(0), 1024, 1024)[::4, ::4]
    raw = 10 * np.log10(np.random.default_rng(1).exponential(2, 10**6))
    assert (
        abs(texture.mean()) < 0.1
        and raw.std() == pytest.approx(5.57, abs=0.02)
        and 3 < texture.std() < 5.7
    )


def test_smoothing_takes_speckle_away_and_roughening_adds_it():
    image = make_phantom(3, 256)[0]
    sector, patch = find_sector(image), (slice(180, 220), slice(100, 150))
    rough = ultrasound.roughen(
        image, sector, ultrasound.speckle_texture(np.random.default_rng(0), 256, 256), 0.4
    )
    spread = [
        picture[patch].astype(float).std()
        for picture in (ultrasound.smoothen(image, sector, 1), image, rough)
    ]
    assert spread[0] < 0.95 * spread[1] and spread[2] > 1.01 * spread[1]


def test_calipers_lie_on_the_lesions_edge_or_anywhere():
    image, mask = make_phantom(5, 256)
    sector, rng = find_sector(image), random.Random(1)
    edge = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)[0][0]
    on = [
        abs(cv2.pointPolygonTest(edge, e, True))
        for _ in range(50)
        for e in caliper_ends(rng, mask, sector, True)
    ]
    off = [
        abs(cv2.pointPolygonTest(edge, e, True))
        for _ in range(50)
        for e in caliper_ends(rng, mask, sector, False)
    ]
    assert np.median(on) < 4 < 15 < np.median(off)
    assert caliper_ends(rng, mask * 0, sector, True)  # no lesion: anywhere


@pytest.mark.parametrize("on_lesion", [0, 1])
def test_drawn_calipers_are_found_and_removed(on_lesion):
    image, mask = make_phantom(5, 256)
    for seed in range(5):
        marked = augment(A.Compose([T.DrawCalipers(on_lesion=on_lesion, p=1)]), image, mask, seed)[
            0
        ]
        marks = np.any(marked != image, 2)
        assert (
            marks.any() and not (find_calipers(marked) == 0)[marks & (np.ptp(marked, 2) > 60)].any()
        )
        left = np.ptp(remove_calipers(marked).astype(int), 2)
        assert (left > 16).sum() < 0.1 * marks.sum()


def test_removal_spares_pictures_without_marks_and_tinted_ones():
    image = make_phantom(5, 256)[0]
    assert np.array_equal(remove_calipers(image), image)
    sepia = (image * np.array([1, 0.9, 0.6])).astype(np.uint8)
    assert np.mean(remove_calipers(sepia) != sepia) < 0.2


def test_label_is_drawn_in_its_color():
    labelled = draw_label(np.zeros((64, 64, 3), np.uint8), "R-OV", (4, 40), (255, 255, 0))
    assert labelled[..., 0].max() > 200 and not labelled[..., 2].any()


@pytest.mark.parametrize(
    ("transform", "arguments"),
    [
        (T.DepthAttenuation, {"decibel": (9, 3)}),
        (T.Haze, {"depth": (0, 2)}),
        (T.SectorAffine, {"scale": (0, 1)}),
    ],
)
def test_values_out_of_range_are_errors(transform, arguments):
    with pytest.raises(InputError, match="expected two rising numbers within"):
        transform(**arguments)
