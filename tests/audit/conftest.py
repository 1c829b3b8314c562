"""A small dataset tree to damage, and pictures to put into it."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ovseg.data.prepare.phantoms import write_phantoms


@pytest.fixture(scope="session")
def sound_tree(tmp_path_factory) -> Path:
    """10 different phantoms of 96 x 96, 7 for training; nothing says that they are phantoms.

    Not to be changed.
    """
    root = tmp_path_factory.mktemp("audit") / "tree"
    write_phantoms(root, 10, size=96, seed=5)
    (root / "manifest.json").unlink()
    for folder in root.glob("*/categories"):
        shutil.rmtree(folder)
    return root


@pytest.fixture
def tree(sound_tree, tmp_path) -> Path:
    """A copy of `sound_tree` that a test may change."""
    return shutil.copytree(sound_tree, tmp_path / "tree")


@pytest.fixture
def read_png():
    """A function that reads a picture as an array."""

    def read(path: Path) -> np.ndarray:
        return np.array(Image.open(path))

    return read


@pytest.fixture
def copy_pair(tree, read_png, save_png):
    """A function that adds a changed copy of a pair to the tree; pairs are named `split/stem`."""

    def copy(source: str, target: str, change=lambda image: image, root: Path = tree) -> None:
        split, stem = source.split("/")
        to_split, to_stem = target.split("/")
        for kind in ("images", "masks"):
            picture = change(read_png(root / split / kind / f"{stem}.png"))
            path = root / to_split / kind / f"{to_stem}.png"
            save_png(path, np.ascontiguousarray(picture))

    return copy
