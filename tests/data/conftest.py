"""Datasets that a test may change, and data modules of small pictures."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from ovseg.data.datamodule import OvarianTumorDataModule

without_cache = shutil.ignore_patterns(".cache")


@pytest.fixture
def make_data() -> Callable[..., OvarianTumorDataModule]:
    """A function that makes a data module: 48 x 48 pixels, batches of 4, no workers."""

    def make(root: Path, **options: object) -> OvarianTumorDataModule:
        settings = {"image_size": 48, "batch_size": 4, "num_workers": 0, **options}
        return OvarianTumorDataModule(str(root), **settings)

    return make


@pytest.fixture
def own_root(phantom_root, tmp_path) -> Path:
    """A copy of the phantoms, without a cache, that the test may change."""
    return shutil.copytree(phantom_root, tmp_path / "own", ignore=without_cache)


@pytest.fixture
def own_fold_root(fold_root, tmp_path) -> Path:
    """A copy of the phantoms with three folds, without a cache, that the test may change."""
    return shutil.copytree(fold_root, tmp_path / "own", ignore=without_cache)
