"""`data.fold`: which images are held out, the shared caches, and what refuses to mix folds."""

import pickle
import shutil

import pytest
import torch

from ovseg.data.datamodule import OvarianTumorDataModule


def make(root, fold, **options):
    options = {"image_size": 48, "batch_size": 4, "num_workers": 0, **options}
    return OvarianTumorDataModule(str(root), fold=fold, **options)


def stems(pairs) -> list[str]:
    return [pair.stem for pair in pairs]


@pytest.fixture
def own_root(fold_root, tmp_path):
    """A copy of the phantoms with folds, without a cache, that a test may spoil."""
    return shutil.copytree(fold_root, tmp_path / "own", ignore=shutil.ignore_patterns(".cache"))


def test_batches_of_a_fold_are_the_decoded_ones_from_the_splits_own_caches(own_root):
    def batches(**options) -> list:
        data = make(own_root, 1, shuffle=False, **options)
        data.prepare_data()
        return [
            batch for loader in (data.train_dataloader(), data.val_dataloader()) for batch in loader
        ]

    plain = batches(cache=False)
    for augmentation in ("none", "standard"):
        decoded, cached = (
            batches(cache=cache, augmentation=augmentation) for cache in (False, True)
        )
        assert [batch["stem"] for batch in cached] == [batch["stem"] for batch in plain]
        assert all(
            torch.equal(a[k], b[k])
            for a, b in zip(decoded, cached, strict=True)
            for k in ("image", "mask")
        )
    files = sorted((own_root / ".cache").iterdir())
    times = [path.stat().st_mtime_ns for path in files]
    for fold in (None, 0, 2):
        make(own_root, fold).prepare_data()
    assert (
        sorted((own_root / ".cache").iterdir()) == files and len(files) == 3
    )  # one a split, whatever the fold
    assert [path.stat().st_mtime_ns for path in files] == times


def test_cached_fold_travels_to_a_worker_and_a_stale_cache_is_not_used(own_root):
    make(own_root, 0).prepare_data()
    dataset = make(own_root, 0).dataset("train")
    assert (
        torch.equal(pickle.loads(pickle.dumps(dataset))[7]["image"], dataset[7]["image"])
        and dataset.cache
    )
    path = next(iter((own_root / ".cache").glob("valid-*")))
    path.write_bytes(path.read_bytes()[:-1])
    assert make(own_root, 0).dataset("train").cache is None
