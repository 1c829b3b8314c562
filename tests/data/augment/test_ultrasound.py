import numpy as np
import pytest

from ovseg.data.augment import ultrasound
from ovseg.data.augment.sector import find_sector
from ovseg.data.prepare.phantoms import make_phantom


def grey(level: int, side: int = 256) -> np.ndarray:
    return np.full((side, side, 3), level, np.uint8)


def test_attenuation_is_linear_in_depth_in_decibel():
    image = grey(200)
    attenuated = ultrasound.attenuate(image, find_sector(image), 12)
    lost = (200 - attenuated[:, 128, 0]) / ultrasound.LEVELS_PER_DB
    assert lost[-1] == pytest.approx(12, abs=1)
    assert np.ptp(np.diff(lost)) < 0.3


def test_gain_lifts_echoes_but_no_black():
    image = grey(100, 64)
    image[20:30] = 0
    changed = ultrasound.change_gain(image, find_sector(image), np.full(8, 4.0))
    assert not changed[20:30].any()
    assert np.all(changed[40:50] == 117)  # 4 dB are 17 levels


def test_gain_beyond_the_dynamic_range_leaves_black_or_doubles():
    """A change of more than 255 levels does not wrap around to a small one."""
    image = grey(100, 64)
    sector = find_sector(image)
    assert not ultrasound.change_gain(image, sector, np.full(8, -63.0)).any()
    assert np.all(ultrasound.change_gain(image, sector, np.full(8, 63.0)) == 200)


def test_shadow_is_behind_its_absorber_along_the_beam():
    image = grey(200)
    shadowed = ultrasound.cast_shadow(
        image, find_sector(image), beam=0, start=0.5, width=0.1, decibel=10
    )
    assert np.all(shadowed[:80] == 200)
    assert shadowed[-20, 128, 0] == 200 - 42  # 10 dB are 42 levels
    assert shadowed[-20, 20, 0] == 200


def test_haze_adds_powers():
    image = grey(85)  # 20 dB
    sector = find_sector(image)
    flat = np.zeros((256, 256), np.float32)
    hazed = ultrasound.add_haze(image, sector, flat, depth=0.5, width=100, decibel=20)
    assert hazed[128, 128, 0] == pytest.approx(85 + 13, abs=1)  # two equal powers are 3 dB more
    without = ultrasound.add_haze(image, sector, flat, depth=0.5, width=100, decibel=0)
    assert np.array_equal(without, image)


def test_speckle_varies_by_the_decibels_of_theory():
    texture = ultrasound.speckle_texture(np.random.default_rng(0), 1024, 1024)[::4, ::4]
    rayleigh = 10 * np.log10(np.random.default_rng(1).exponential(2, 10**6))
    assert rayleigh.std() == pytest.approx(5.57, abs=0.02)
    assert abs(texture.mean()) < 0.1
    assert 3 < texture.std() < 5.7  # interpolation between the grains takes some


def test_speckle_is_reduced_and_added():
    image = make_phantom(3, 256)[0]
    sector = find_sector(image)
    texture = ultrasound.speckle_texture(np.random.default_rng(0), 256, 256)
    smooth = ultrasound.reduce_speckle(image, sector, 1)
    rough = ultrasound.add_speckle(image, sector, texture, 0.4)

    def spread(picture: np.ndarray) -> float:
        return float(picture[180:220, 100:150].astype(float).std())

    assert spread(smooth) < 0.95 * spread(image)
    assert spread(rough) > 1.01 * spread(image)
