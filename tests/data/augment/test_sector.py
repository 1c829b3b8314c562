import cv2
import numpy as np
import pytest

from ovseg.data.augment.sector import find_sector
from ovseg.data.augment.ultrasound import rotate_about_apex
from ovseg.data.prepare.phantoms import Fan, make_phantom


@pytest.mark.parametrize("seed", range(10))
def test_sector_of_a_phantom_is_found_with_its_apex_and_radii(seed, outside):
    near = Fan.draw(np.random.default_rng(seed)).near
    sector = find_sector(make_phantom(seed, 256)[0])
    inside = sector.enlarge(sector.mask.astype(np.float32)) > 0.5
    assert np.mean(inside == outside(seed, 256)) < 0.05
    assert sector.apex == pytest.approx((128, 256 * (0.02 - near * 0.5)), abs=20)
    assert (sector.near, sector.far) == pytest.approx((256 * 0.95 * near, 256 * 0.95), abs=20)


def test_black_cyst_at_the_side_belongs_to_the_sector_and_the_probe_does_not():
    image = np.full((200, 200, 3), 90, np.uint8)
    cv2.circle(image, (100, 0), 40, (0, 0, 0), -1)  # the probe's face
    cv2.circle(image, (0, 120), 30, (0, 0, 0), -1)  # a cyst that the side cuts
    sector = find_sector(image)
    mask = sector.enlarge(sector.mask)
    assert mask[120, 5]
    assert mask[60, 100]
    assert not mask[10, 100]


def test_black_picture_has_an_empty_sector():
    sector = find_sector(np.zeros((64, 80, 3), np.uint8))
    assert not sector.mask.any()
    assert sector.far > sector.near
    assert np.isfinite(sector.depth).all()
    assert np.isfinite(sector.angle).all()


def test_rotation_about_the_apex_leaves_a_sector_with_the_same_apex():
    image, _ = make_phantom(4, 256)
    sector = find_sector(image)
    rotated = find_sector(rotate_about_apex(image, sector, 6, 0.9))
    assert np.allclose(rotated.apex, sector.apex, atol=8)
