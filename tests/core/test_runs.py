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
    with pytest.raises(
        InputError, match="has no checkpoint .*best.ckpt, last.ckpt, interrupted.ckpt"
    ):
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


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("unet/version_3", "unet"),
        ("unet/version_final", "version_final"),
        ("unet", "unet"),
    ],
)
def test_name_of_the_configuration_is_that_of_the_folder_of_versions(tmp_path, folder, name):
    assert RunFolder(tmp_path / folder).config_name == name


def test_versions_are_counted_by_number_and_other_folders_are_left_out(tmp_path):
    for name in ("version_2", "version_10", "version_final", "version_²"):
        (tmp_path / name).mkdir()
    versions = [run.path.name for run in RunFolder.list_versions(tmp_path)]
    assert versions == ["version_2", "version_10"]
    assert RunFolder.claim(tmp_path).path.name == "version_11"


def test_first_folder_is_the_one_that_is_claimed_first(tmp_path):
    assert RunFolder.first(tmp_path) == RunFolder.claim(tmp_path)


def test_checkpoint_that_is_being_written_is_none(tmp_path):
    run = RunFolder(tmp_path)
    run.checkpoints.mkdir()
    (run.checkpoints / ".last.1234.tmp.ckpt").touch()
    assert not run.has_checkpoint
    run.checkpoint("last").touch()
    assert run.has_checkpoint
