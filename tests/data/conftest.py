"""Datasets that a test may change."""

import shutil
from pathlib import Path

import pytest

without_cache = shutil.ignore_patterns(".cache")


@pytest.fixture
def own_root(phantom_root, tmp_path) -> Path:
    """A copy of the phantoms, without a cache, that the test may change."""
    return shutil.copytree(phantom_root, tmp_path / "own", ignore=without_cache)


@pytest.fixture
def own_fold_root(fold_root, tmp_path) -> Path:
    """A copy of the phantoms with three folds, without a cache, that the test may change."""
    return shutil.copytree(fold_root, tmp_path / "own", ignore=without_cache)
