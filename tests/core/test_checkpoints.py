"""Which checkpoints a path stands for, and which may be used together."""

import hashlib
import json
import re
import zipfile
from pathlib import Path

import psutil
import pytest
import torch

from ovseg.core.checkpoints import (
    Member,
    check_evaluable,
    checkpoint_digest,
    find_checkpoint,
    find_checkpoints,
    find_dataset,
    is_cross_validation,
    read_checkpoint,
    read_member,
    read_members,
)
from ovseg.core.errors import InputError


@pytest.fixture(scope="module")
def run(make_run, tmp_path_factory) -> Path:
    """A run of one class. Not to be changed."""
    return make_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def category_run(make_run, tmp_path_factory) -> Path:
    """A run for four categories. Not to be changed."""
    return make_run(tmp_path_factory.mktemp("category_run"), classes=5)


@pytest.fixture
def write_ensemble(tmp_path, monkeypatch):
    """A function that writes an ensemble of runs elsewhere, which the command trusts."""
    monkeypatch.setenv("OVSEG_TRUST_CONFIG", "1")

    def write(*members: Path) -> Path:
        content = {"members": [str(member) for member in members]}
        (tmp_path / "ensemble.json").write_text(json.dumps(content))
        return tmp_path

    return write


def make_member(name: str, **data) -> Member:
    settings = {"image_size": 32, "fit": "letterbox", "root": "d", "exclude": None, **data}
    return Member(Path(name), settings, 1, [], 1, None)


def test_checkpoint_of_a_path_is_itself(run):
    path = run / "checkpoints" / "last.ckpt"
    assert find_checkpoint(path) == path
    assert find_checkpoints(run) == [path]


def test_ensemble_stands_for_the_checkpoints_of_its_members(run, category_run, write_ensemble):
    paths = [folder / "checkpoints" / "last.ckpt" for folder in (run, category_run)]
    assert find_checkpoints(write_ensemble(run, category_run)) == paths


@pytest.mark.parametrize(
    "text", ["{", "[]", "{}", '{"members": []}', '{"members": "a"}', '{"members": [1]}']
)
def test_file_that_names_no_members_is_an_error(tmp_path, text):
    (tmp_path / "ensemble.json").write_text(text)
    with pytest.raises(InputError, match='ensemble.json is not what .*Expected {"members"'):
        find_checkpoints(tmp_path)


def test_ensemble_of_too_many_is_refused_before_any_is_read(tmp_path):
    (tmp_path / "ensemble.json").write_text(json.dumps({"members": ["a"] * 5000}))
    with pytest.raises(InputError, match="has 5000 members, expected at most 100"):
        find_checkpoints(tmp_path)


@pytest.mark.parametrize("name", ["../elsewhere", "/etc", "link", "a\0b"])
def test_member_outside_of_the_folder_is_refused_unless_trusted(tmp_path, name):
    folder = tmp_path / "ensemble"
    folder.mkdir()
    (folder / "link").symlink_to(tmp_path)
    (folder / "ensemble.json").write_text(json.dumps({"members": [name]}))
    with pytest.raises(InputError, match="which is not inside .* add --trust_config"):
        find_checkpoints(folder)


def test_compressed_checkpoint_is_refused_before_it_is_unpacked(tmp_path):
    path = tmp_path / "bomb.ckpt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(10_000_000))
    with pytest.raises(InputError, match="it is compressed, as torch never does"):
        read_checkpoint(path)


def test_archive_whose_entries_overlap_is_refused(tmp_path):
    path = tmp_path / "bomb.ckpt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", bytes(10_000))
        archive.infolist().extend(archive.infolist() * 9)
    with pytest.raises(InputError, match="100,000 bytes unpacked, more than the file"):
        read_checkpoint(path)


WRONG = [
    ("hyper_parameters", {"arch": 3}, "Expected `str`, got `int` - at `$.hyper_parameters.arch`"),
    ("hyper_parameters", {"arch": "x", "arch_args": {"classes": "many"}}, "arch_args.classes"),
    ("datamodule_hyper_parameters", {"root": "d", "fit": "stretch"}, "image_size"),
    ("state_dict", {"network.a": 3}, "Expected `Tensor`, got `int`"),
    ("loops", {"fit_loop": {"epoch_progress": {}}}, "missing required field `current`"),
    ("OvarianTumorDataModule", {"categories": [1]}, "Expected `str`, got `int`"),
    ("hparams_name", "arch", "Invalid enum value 'arch'"),
]


@pytest.mark.parametrize(("section", "content", "problem"), WRONG)
def test_malformed_checkpoint_is_an_error_that_names_the_place(
    run, tmp_path, section, content, problem
):
    checkpoint = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    checkpoint[section] = content
    torch.save(checkpoint, tmp_path / "bad.ckpt")
    with pytest.raises(InputError, match=re.escape(problem)):
        read_checkpoint(tmp_path / "bad.ckpt")


def test_settings_are_read_without_the_weights(run, tmp_path):
    checkpoint = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    checkpoint["state_dict"]["network.large"] = torch.ones(25_000_000)  # 100 MB
    torch.save(checkpoint, tmp_path / "large.ckpt")
    del checkpoint
    process = psutil.Process()
    before = process.memory_info().rss
    large = read_checkpoint(tmp_path / "large.ckpt")
    assert large["hyper_parameters"]["arch"] == "flexible_unet"
    assert process.memory_info().rss - before < 20_000_000
    assert (large["state_dict"]["network.large"] == 1).all()


def test_tensor_among_the_hyper_parameters_is_refused(run, tmp_path):
    checkpoint = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    checkpoint["hyper_parameters"]["optimizer_args"] = {"lr": torch.zeros(2)}
    torch.save(checkpoint, tmp_path / "bad.ckpt")
    with pytest.raises(InputError, match="objects instead of plain values"):
        read_checkpoint(tmp_path / "bad.ckpt")


def test_member_that_is_missing_is_named(tmp_path, write_ensemble):
    with pytest.raises(InputError, match="There is no folder .*gone"):
        find_checkpoints(write_ensemble(tmp_path / "gone"))


def test_member_has_what_its_checkpoint_says(category_run):
    member = read_member(find_checkpoint(category_run))
    assert member.classes == 5
    assert member.categories == ["cyst", "haze", "solid", "mixed"]
    assert member.data["image_size"] == 32
    assert member.held_out is None


def test_members_for_different_classes_are_refused(run, category_run, write_ensemble):
    message = "trained for different classes: lesion .*, and cyst, haze, solid, mixed"
    with pytest.raises(InputError, match=message):
        read_members(write_ensemble(run, category_run))


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 truncated"])
def test_broken_checkpoint_is_an_error(tmp_path, content):
    (tmp_path / "last.ckpt").write_bytes(content)
    with pytest.raises(InputError, match="is not a whole checkpoint of ovseg"):
        read_checkpoint(tmp_path / "last.ckpt")


def test_missing_checkpoint_is_an_error(tmp_path):
    with pytest.raises(InputError, match="There is no checkpoint .*gone.ckpt"):
        read_checkpoint(tmp_path / "gone.ckpt")


def test_checkpoint_of_another_program_is_an_error(tmp_path):
    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
    with pytest.raises(InputError, match="other.ckpt is not a whole checkpoint of ovseg"):
        read_checkpoint(tmp_path / "other.ckpt")


def test_digest_of_several_is_of_their_digests(tmp_path):
    paths = [tmp_path / "a", tmp_path / "b"]
    paths[0].write_bytes(b"one")
    paths[1].write_bytes(b"two")
    digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]
    assert checkpoint_digest(paths[0]) == digests[0]
    assert checkpoint_digest(*paths) == hashlib.sha256(" ".join(digests).encode()).hexdigest()


def test_members_that_differ_only_in_training_are_scored_together():
    members = [make_member("a", batch_size=2, seed=0), make_member("b", batch_size=4, seed=1)]
    check_evaluable(members, "valid", None)


@pytest.mark.parametrize(
    ("data", "split", "message"),
    [
        ({"image_size": 48}, "test", "a and b have data.image_size 32 and 48, .*no common size"),
        ({"root": "e"}, "test", "data.root d and e. Name the dataset to score with --data"),
        ({"exclude": ["x"]}, "valid", "may have seen valid images of the other"),
    ],
)
def test_members_that_cannot_be_scored_together_are_refused(data, split, message):
    members = [make_member("a"), make_member("b", **data)]
    with pytest.raises(InputError, match=message):
        check_evaluable(members, split, None)


def test_one_dataset_can_be_named_in_two_ways(tmp_path, monkeypatch):
    (tmp_path / "d").mkdir()
    monkeypatch.chdir(tmp_path)
    absolute = str(tmp_path / "d")
    check_evaluable([make_member("a"), make_member("b", root=absolute)], "valid", None)
    assert is_cross_validation([make_member("a", fold=0), make_member("b", fold=1, root=absolute)])


def test_members_of_different_images_are_scored_on_test():
    check_evaluable([make_member("a"), make_member("b", exclude=["x"])], "test", None)


def test_dataset_of_a_relative_path_is_found_from_another_folder(tmp_path, monkeypatch):
    there = tmp_path / "there"
    (there / "data").mkdir(parents=True)
    (tmp_path / "here").mkdir()
    member = Member(Path("a.ckpt"), {"root": "data"}, 1, [], 1, None, str(there / "data"))
    monkeypatch.chdir(there)
    assert find_dataset(member) == "data"
    monkeypatch.chdir(tmp_path / "here")
    assert find_dataset(member) == str(there / "data")
    (there / "data").rmdir()
    message = "no dataset folder data, on which a.ckpt .*here/data, .*there/data. Name .*--data"
    with pytest.raises(InputError, match=message):
        find_dataset(member)
