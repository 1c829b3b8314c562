"""A checkpoint is whole or not there, and the earlier one stays until the new one is."""

import resource

import pytest
import torch

from ovseg.core.errors import InputError
from ovseg.training.checkpoint_io import WholeCheckpointIO


def test_a_full_disk_keeps_the_earlier_checkpoint_and_tells_it_in_a_sentence(tmp_path):
    path = tmp_path / "last.ckpt"
    WholeCheckpointIO().save_checkpoint({"epoch": 1}, path)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(InputError, match=r"last.ckpt: File too large.*is kept"):
            WholeCheckpointIO().save_checkpoint(
                {"epoch": 2, "weights": torch.zeros(1_000_000)}, path
            )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert torch.load(path, weights_only=True) == {"epoch": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]


def test_nothing_is_written_outside_the_folder_of_the_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path / "missing"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "missing"))
    WholeCheckpointIO().save_checkpoint({"epoch": 1}, tmp_path / "run" / "best.ckpt")
    assert torch.load(tmp_path / "run" / "best.ckpt", weights_only=True) == {"epoch": 1}


def test_an_error_that_is_none_of_the_disk_stays_itself(tmp_path):
    with pytest.raises(Exception) as found:
        WholeCheckpointIO().save_checkpoint({"function": lambda: None}, tmp_path / "last.ckpt")
    assert not isinstance(found.value, InputError)
