"""The files of a run folder."""

import pytest

from ovseg.core.errors import InputError
from ovseg.core.runs import RunFolder


def test_best_checkpoint_is_preferred_to_the_last(tmp_path):
    run = RunFolder(tmp_path)
    run.checkpoints.mkdir()
    for name in ("interrupted", "last", "best"):
        run.checkpoint(name).touch()
        assert run.find_checkpoint() == run.checkpoint(name)


def test_folder_without_a_checkpoint_is_an_error(tmp_path):
    with pytest.raises(InputError, match="no checkpoints/best.ckpt or last.ckpt"):
        RunFolder(tmp_path).find_checkpoint()


def test_each_split_has_its_own_folder_of_scores(tmp_path):
    run = RunFolder(tmp_path)
    assert run.evaluation("test") == tmp_path / "evaluation"
    assert run.evaluation("valid") == tmp_path / "evaluation_valid"


def test_scores_of_a_checkpoint_need_an_output(tmp_path):
    checkpoint = tmp_path / "last.ckpt"
    checkpoint.touch()
    with pytest.raises(InputError, match="is not a run folder.* Add --output FOLDER"):
        RunFolder(checkpoint).evaluation("test")
