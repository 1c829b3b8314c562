"""A download of phantoms in the layout of OTU_2d, where near-duplicates are known."""

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from ovseg.data.prepare.phantoms import make_phantom

STEMS = [f"case {number}" for number in range(40)]


@pytest.fixture(scope="session")
def stems() -> list[str]:
    """The 40 stems of `download`: 3k, 3k + 1 and 3k + 2 show one phantom, which is 14 groups."""
    return STEMS


@pytest.fixture(scope="session")
def download(tmp_path_factory) -> Path:
    """40 pairs of 14 phantoms: each as it is, brighter, and with calipers. Not to be changed."""
    folder = tmp_path_factory.mktemp("download")
    (folder / "images").mkdir()
    (folder / "annotations").mkdir()
    for number, stem in enumerate(STEMS):
        phantom = number // 3
        image, mask = make_phantom(phantom, 96)
        if number % 3 == 1:
            image = cv2.convertScaleAbs(image, alpha=1.3, beta=0)
        if number % 3 == 2:
            cv2.drawMarker(image, (50, 50), (255, 255, 0), cv2.MARKER_CROSS, 6)
        color = [(64, 0, 0), (0, 64, 0)][phantom % 2]
        annotation = mask[..., None] * np.uint8(color)
        Image.fromarray(image).save(folder / "images" / f"{stem}.JPG", quality=95)
        Image.fromarray(annotation).save(folder / "annotations" / f"{stem}.PNG")
    return folder


@pytest.fixture(scope="session")
def make_split(stems) -> Callable[..., dict[str, str]]:
    """A function that makes a split of `download` by groups, except for the stems it is given."""

    def make(**exceptions: str) -> dict[str, str]:
        names = ["train"] * 10 + ["valid"] * 2 + ["test"] * 2
        split = {stem: names[number // 3] for number, stem in enumerate(stems)}
        return split | exceptions

    return make
