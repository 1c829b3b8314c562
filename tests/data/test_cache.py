import os
import pickle
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ovseg.core.errors import InputError
from ovseg.data import cache as cache_module
from ovseg.data import datamodule as datamodule_module
from support import make_data as make


@pytest.fixture
def decodings(monkeypatch):
    """The stems that verification decoded, in order."""
    stems, verify = [], datamodule_module.verify_pairs

    def counting(pairs, *arguments):
        stems.extend(pair.stem for pair in pairs)
        return verify(pairs, *arguments)

    monkeypatch.setattr(datamodule_module, "verify_pairs", counting)
    return stems


def batches(root, **options) -> list[torch.Tensor]:
    data = make(root, shuffle=False, **options)
    data.prepare_data()
    return [
        tensor for batch in data.train_dataloader() for tensor in (batch["image"], batch["mask"])
    ]


def cache_file(root, split="train") -> Path:
    (path,) = (root / ".cache").glob(f"{split}-*.pairs")
    return path


def same(ours: list, theirs: list) -> bool:
    return len(ours) == len(theirs) and all(
        torch.equal(a, b) for a, b in zip(ours, theirs, strict=True)
    )


@pytest.mark.parametrize("augmentation", ["none", "standard", "ultrasound_strong"])
@pytest.mark.parametrize("workers", [0, 2])
def test_cached_batches_equal_decoded_ones(own_root, augmentation, workers):
    decoded = batches(own_root, augmentation=augmentation, cache=False)
    assert not (own_root / ".cache").exists()
    for _ in range(2):
        assert same(batches(own_root, augmentation=augmentation, num_workers=workers), decoded)


def test_a_valid_cache_spares_the_decoding(own_root, decodings):
    make(own_root).prepare_data()
    assert len(decodings) == 20
    make(own_root).prepare_data()
    assert len(decodings) == 20


def test_an_epoch_reads_the_cache_and_no_picture(own_root, monkeypatch):
    make(own_root).prepare_data()
    monkeypatch.setattr(datamodule_module, "read_image", None)
    assert len(list(make(own_root).train_dataloader())) == 4


def test_changed_file_is_found_and_its_split_cached_anew(own_root, decodings):
    before = batches(own_root)
    path = own_root / "train" / "images" / "phantom_0.png"
    Image.fromarray(255 - np.array(Image.open(path))).save(path)
    after = batches(own_root)
    assert len(decodings) == 20 + 14 and not torch.equal(before[0][0], after[0][0])
    assert torch.equal(before[0][1:], after[0][1:]) and cache_file(
        own_root
    )  # the stale file was replaced


def test_spoiled_and_missing_files_are_found_in_spite_of_a_cache(own_root):
    make(own_root).prepare_data()
    (own_root / "valid" / "images" / "phantom_14.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"phantom_14\.png cannot be read"):
        make(own_root).prepare_data()
    (own_root / "valid" / "images" / "phantom_14.png").unlink()
    with pytest.raises(InputError, match="have no image of the same stem"):
        make(own_root).prepare_data()


def test_link_to_nowhere_is_named(own_root):
    path = own_root / "train" / "images" / "phantom_0.png"
    path.unlink()
    path.symlink_to(own_root / "gone.png")
    with pytest.raises(InputError, match=r"phantom_0\.png cannot be read"):
        make(own_root).prepare_data()
    assert not list((own_root / ".cache").glob("*train*"))  # nothing half written stays


def cut_short(content: bytes) -> bytes:
    return content[: len(content) // 2]


def cut_in_front(content: bytes) -> bytes:
    return content[1000:]


def flip_a_bit(content: bytes) -> bytes:
    return content[:5000] + bytes([content[5000] ^ 1]) + content[5001:]


def zeros(content: bytes) -> bytes:
    return bytes(len(content))


def spoil_length(content: bytes) -> bytes:
    return content[:-16] + b"\xff" * 8 + content[-8:]


def spoil_json(content: bytes) -> bytes:
    return content[:-17] + b"#" + content[-16:]


def nothing(_: bytes) -> bytes:
    return b""


@pytest.mark.parametrize(
    "damage", [cut_short, cut_in_front, flip_a_bit, zeros, spoil_length, spoil_json, nothing]
)
def test_damaged_cache_is_built_anew(own_root, decodings, damage):
    before = batches(own_root)
    path = cache_file(own_root)
    path.write_bytes(damage(path.read_bytes()))
    assert same(batches(own_root), before) and len(decodings) == 20 + 14
    assert same(batches(own_root), before) and len(decodings) == 20 + 14


def test_evaluation_uses_a_cache_but_writes_none(own_root, decodings):
    data = make(own_root)
    data.verify(["test"])
    assert len(list(data.eval_dataloader("test"))) == 1 and not (own_root / ".cache").exists()
    make(own_root).prepare_data()
    path = cache_file(own_root, "test")
    path.write_bytes(flip_a_bit(path.read_bytes()))
    data = make(own_root)
    data.verify(["test"])
    assert data.dataset("test").cache is None  # a damaged one is not used


def test_settings_have_caches_of_their_own(own_root, decodings):
    for options in ({}, {"image_size": 32}, {"fit": "stretch"}, {"mask_threshold": 90}):
        make(own_root, **options).prepare_data()
    assert len(list((own_root / ".cache").iterdir())) == 12
    count = len(decodings)
    for options in ({}, {"image_size": 32}):
        make(own_root, **options).prepare_data()
    assert len(decodings) == count


def test_empty_masks_are_named_from_the_cache_too(own_root, monkeypatch):
    path = own_root / "train" / "masks" / "phantom_2.png"
    Image.fromarray(np.array(Image.open(path)) * 0).save(path)
    told = []
    monkeypatch.setattr(datamodule_module, "rank_zero_info", told.append)
    for _ in range(2):
        make(own_root).prepare_data()
    assert told == ["1 of 14 masks in train are empty: phantom_2"] * 2


def test_cache_folder_may_be_named(own_root, tmp_path):
    make(own_root, cache=str(tmp_path / "fast")).prepare_data()
    assert (
        len(list((tmp_path / "fast" / "own").glob("*.pairs"))) == 3
        and not (own_root / ".cache").exists()
    )


def test_folder_that_cannot_be_written_is_told_once_and_trains_all_the_same(own_root, monkeypatch):
    (own_root / ".cache").write_text(
        "in the way"
    )  # as a read-only folder would be; root may write anywhere
    told = []
    monkeypatch.setattr(cache_module, "rank_zero_info", told.append)
    assert same(batches(own_root), batches(own_root, cache=False))
    assert len(told) == 1 and "so every epoch decodes its pictures again. Set data.cache" in told[0]


def test_full_disk_is_told_before_anything_is_written(own_root, monkeypatch):
    told = []
    monkeypatch.setattr(cache_module, "rank_zero_info", told.append)
    monkeypatch.setattr(
        cache_module.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 10, 0)
    )
    make(own_root).prepare_data()
    assert len(told) == 1 and "its disk has less than 0 MB to spare" in told[0]


def test_two_trainings_that_start_at_once_agree(own_root):
    data = [make(own_root) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda module: module.verify(["train"], keep=True), data))
    assert same(batches(own_root), batches(own_root, cache=False))
    assert len(list((own_root / ".cache").glob("train-*"))) == 1


def test_open_cache_outlives_its_replacement(own_root):
    make(own_root).prepare_data()
    dataset = make(own_root).dataset("train")
    before = dataset[3]["image"]
    os.utime(own_root / "train" / "images" / "phantom_0.png")
    make(own_root).prepare_data()
    assert torch.equal(dataset[3]["image"], before)
    with pytest.raises(InputError, match="was replaced while it was in use"):
        pickle.loads(pickle.dumps(dataset))


def test_dataset_travels_to_a_spawned_worker_without_its_records(own_root):
    make(own_root).prepare_data()
    dataset = make(own_root).dataset("train")
    content = pickle.dumps(dataset)
    assert len(content) < 20_000 and torch.equal(
        pickle.loads(content)[5]["image"], dataset[5]["image"]
    )


def test_what_a_killed_process_left_is_swept(own_root):
    (own_root / ".cache").mkdir()
    old, young = (own_root / ".cache" / f".train-0.{name}.tmp.pairs" for name in ("1", "2"))
    old.write_bytes(b"x"), young.write_bytes(b"x")
    os.utime(old, (time.time() - 7200,) * 2)
    make(own_root).prepare_data()
    assert young.exists() and not old.exists()
