"""Phantoms as the tests of augmentations need them."""

from collections.abc import Callable

import numpy as np
import pytest

from ovseg.data.augment.calipers import draw_caliper
from ovseg.data.prepare.phantoms import BEAMS, DEPTHS, Fan, make_phantom

Pair = tuple[np.ndarray, np.ndarray]


@pytest.fixture(scope="session")
def marked_phantom() -> Pair:
    """A phantom of 128 pixels with a yellow measurement, and its mask. Not to be changed."""
    image, mask = make_phantom(1, 128)
    return draw_caliper(image, ((40, 60), (80, 64)), (255, 255, 0)), mask


@pytest.fixture(scope="session")
def outside() -> Callable[[int, int], np.ndarray]:
    """A function (seed, size) -> where the phantom has no beams, bool (size, size)."""

    def find(seed: int, size: int) -> np.ndarray:
        fan = Fan.draw(np.random.default_rng(seed))
        beams = np.ones((DEPTHS, BEAMS), np.float32)
        return fan.scan_convert(beams, size) == 0

    return find
