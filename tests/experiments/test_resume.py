"""Resumes: what they may change, what they give, and new trainings from earlier weights."""

import os
import shlex
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from ovseg.core.runs import RunFolder
from support import tiny_settings

DROPOUT = {"num_layers": 3, "dropout_rate": 0.2}
SETTINGS = tiny_settings(max_epochs=4, arch_args=DROPOUT, augmentation="standard")
LAST = Path("runs/tiny/version_0/checkpoints/last.ckpt")


@pytest.fixture
def tiny(write_config, phantom_root, empty_figures):
    """A folder to work in, with tiny.yaml."""
    return write_config(SETTINGS, phantom_root)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, phantom_root, run_command):
    """The run folder of two epochs of four, and that of all four. Not to be changed."""
    folder = tmp_path_factory.mktemp("trained")
    settings = {**SETTINGS, "data": {**SETTINGS["data"], "root": str(phantom_root)}}
    (folder / "tiny.yaml").write_text(yaml.safe_dump(settings))
    runs = []
    for epochs in (2, 4):
        command = [
            "train",
            "--config",
            folder / "tiny.yaml",
            "--runs_dir",
            folder / f"runs_{epochs}",
        ]
        assert run_command(*command, "--trainer.max_epochs", epochs) == 0
        runs.append(RunFolder(folder / f"runs_{epochs}" / "tiny" / "version_0"))
    return SimpleNamespace(half=runs[0], whole=runs[1])


@pytest.fixture
def moved_data(phantom_root, tmp_path):
    """A copy of the phantoms elsewhere, with other times of change."""
    shutil.copytree(phantom_root, tmp_path / "moved")
    for path in (tmp_path / "moved").rglob("*.png"):
        os.utime(path, (1e9, 1e9))
    return tmp_path / "moved"


def state(path: Path) -> dict[str, torch.Tensor]:
    """The weights of a checkpoint."""
    return torch.load(path, weights_only=True)["state_dict"]


def assert_equal_weights(path: Path, other: Path) -> None:
    """Two checkpoints hold the same weights, bit for bit."""
    expected = state(other)
    found = state(path)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def last_line(capsys) -> str:
    return capsys.readouterr().err.strip().splitlines()[-1]


# What a resume may change


@pytest.mark.parametrize(
    ("key", "value", "found"),
    [
        ("image_size", "48", "data.image_size 32, not 48"),
        ("fit", "stretch", "data.fit letterbox, not stretch"),
        ("mask_threshold", "90", "data.mask_threshold 127, not 90"),
        ("exclude", "[phantom_1]", "data.exclude [], not ['phantom_1']"),
    ],
)
def test_resume_with_other_images_is_refused(tiny, train, trained, capsys, key, value, found):
    assert train("--ckpt_path", trained.half.checkpoint("last"), f"--data.{key}", value) == 2
    error = last_line(capsys)
    assert f"was trained with {found}" in error
    assert "--model.weights" in error
    assert not (tiny / "runs").exists()


def test_resume_on_a_changed_image_is_refused(tiny, train, trained, moved_data, capsys):
    path = sorted((moved_data / "train" / "images").iterdir())[0]
    image = np.array(Image.open(path))
    image[0, 0] ^= 1
    Image.fromarray(image).save(path)
    resume = ("--ckpt_path", trained.half.checkpoint("last"), "--data.root", moved_data)
    assert train(*resume) == 2
    error = last_line(capsys)
    assert f"train of {moved_data} have other images or masks than those that" in error
    assert not (tiny / "runs").exists()


@pytest.mark.parametrize("cache", ["true", "false"])
def test_resume_on_a_moved_dataset_of_the_same_content_continues(
    tiny, train, trained, moved_data, cache
):
    resume = ("--ckpt_path", trained.half.checkpoint("last"), "--data.root", moved_data)
    assert train(*resume, "--data.cache", cache) == 0
    assert_equal_weights(LAST, trained.whole.checkpoint("last"))


def test_resume_with_another_batch_size_says_so(tiny, train, trained, caplog):
    with caplog.at_level("INFO"):
        assert train("--ckpt_path", trained.half.checkpoint("last"), "--data.batch_size", 2) == 0
    assert "The resume goes on with data.batch_size 2 (it was 4)" in caplog.text


def test_finished_training_names_how_to_start_from_its_weights(tiny, train, trained, capsys):
    path = trained.whole.checkpoint("last")
    assert train("--ckpt_path", path) == 2
    error = last_line(capsys)
    assert "has done 4 epochs of trainer.max_epochs 4" in error
    assert f"--model.weights {path}" in error


# What a resume gives


@pytest.mark.filterwarnings("ignore:This DataLoader will create 4 worker processes")
@pytest.mark.parametrize("workers", [0, 1, 2, 4])
def test_resume_is_the_uninterrupted_training_bit_for_bit(tiny, train, trained, workers):
    last = trained.half.checkpoint("last")
    assert train("--ckpt_path", last, "--data.num_workers", workers) == 0
    for name in ("last", "best"):
        found = RunFolder(Path("runs/tiny/version_0")).checkpoint(name)
        assert_equal_weights(found, trained.whole.checkpoint(name))


STOPPING = ("--early_stopping.min_delta", "9", "--early_stopping.patience")


def test_training_that_early_stopping_ended_is_not_resumed(tiny, train, capsys):
    assert train(*STOPPING, 1) == 0
    assert train(*STOPPING, 1, "--ckpt_path", LAST) == 2
    error = last_line(capsys)
    assert "Early stopping had ended the training" in error
    assert "after 2 epochs" in error
    assert [run.name for run in Path("runs/tiny").iterdir()] == ["version_0"]


def test_higher_patience_continues_as_if_it_had_been_there(tiny, train):
    assert train(*STOPPING, 1) == 0
    assert train(*STOPPING, 2, "--ckpt_path", LAST) == 0
    assert train(*STOPPING, 2, "--runs_dir", "other") == 0
    found = Path("runs/tiny/version_1/checkpoints/last.ckpt")
    assert torch.load(found, weights_only=True)["epoch"] == 2
    assert_equal_weights(found, Path("other/tiny/version_0/checkpoints/last.ckpt"))


class Kill(Exception):
    """Stands for the end of the process."""


def test_resumed_run_that_ends_in_its_first_epoch_has_a_checkpoint(
    tiny, train, trained, monkeypatch
):
    from ovseg.training.task import SegmentationTask

    def fail(*_):
        raise Kill

    monkeypatch.setattr(SegmentationTask, "validation_step", fail)
    last = trained.half.checkpoint("last")
    with pytest.raises(Kill):
        train("--ckpt_path", last)
    assert LAST.read_bytes() == last.read_bytes()


def test_run_that_was_evaluated_while_it_trained_is_evaluated_at_the_end(
    tiny, train, run_command, monkeypatch
):
    from ovseg.training.callbacks import HistoryPlots

    finish = HistoryPlots.on_train_epoch_end

    def evaluate_then_finish(self, trainer, pl_module):
        if trainer.current_epoch == 1:
            assert run_command("evaluate", "--run", "runs/tiny/version_0", "--device", "cpu") == 0
        finish(self, trainer, pl_module)

    monkeypatch.setattr(HistoryPlots, "on_train_epoch_end", evaluate_then_finish)
    assert train("--evaluate_test", "true", "--trainer.max_epochs", 2) == 0


# What an interrupted training advises


@pytest.fixture
def stop_in_epoch(monkeypatch):
    """A function that presses Ctrl-C when an epoch begins; 0 never does."""
    from ovseg.training.callbacks import EpochSeed

    before = signal.getsignal(signal.SIGINT)
    begin = EpochSeed.on_train_epoch_start
    at = SimpleNamespace(epoch=0)

    def stop(self, trainer, pl_module):
        if trainer.current_epoch + 1 == at.epoch:
            raise KeyboardInterrupt
        begin(self, trainer, pl_module)

    def stop_in(epoch):
        signal.signal(signal.SIGINT, before)  # Lightning ignores it after an interruption
        at.epoch = epoch

    monkeypatch.setattr(EpochSeed, "on_train_epoch_start", stop)
    yield stop_in
    signal.signal(signal.SIGINT, before)


def advised(capsys) -> tuple[str, list[str]]:
    """What the last line says is safe, and the command that it advises."""
    safe, _, command = last_line(capsys).partition(". Continue with: ")
    return safe, shlex.split(command)


def test_advised_command_continues_the_interrupted_training(
    tiny, train, stop_in_epoch, run_command, capsys, monkeypatch
):
    # A run whose process still lives is left to it, and here that is this process.
    monkeypatch.setattr("ovseg.experiments.run_record._still_trains", lambda record: False)
    stop_in_epoch(2)
    assert train("--data.shuffle", "false") == 130
    safe, command = advised(capsys)
    assert safe == f"error: stopped by Ctrl-C. Epoch 1 is safe in {LAST}"
    same = ["--config", "tiny.yaml", "--data.shuffle", "false"]
    assert command == ["ovseg", "train", *same, "--resume"]

    stop_in_epoch(3)
    assert run_command(*command[1:]) == 130
    safe, again = advised(capsys)
    second = Path("runs/tiny/version_1/checkpoints/last.ckpt")
    assert safe.endswith(f"Epoch 2 is safe in {second}")
    assert again == command

    stop_in_epoch(0)
    assert run_command(*again[1:]) == 0
    third = Path("runs/tiny/version_2/checkpoints/last.ckpt")
    assert torch.load(third, weights_only=True)["epoch"] == 3


def test_training_that_was_given_a_path_advises_its_own(
    tiny, train, trained, stop_in_epoch, run_command, capsys
):
    first = str(LAST)
    stop_in_epoch(4)
    assert train("--ckpt_path", trained.half.checkpoint("last")) == 130
    safe, command = advised(capsys)
    assert safe.endswith(f"Epoch 3 is safe in {first}")
    assert command == ["ovseg", "train", "--config", "tiny.yaml", "--ckpt_path", first]

    stop_in_epoch(0)
    assert run_command(*command[1:]) == 0
    second = Path("runs/tiny/version_1/checkpoints/last.ckpt")
    assert_equal_weights(second, trained.whole.checkpoint("last"))


def test_training_that_is_not_the_newest_advises_its_path(
    tiny, train, stop_in_epoch, monkeypatch, capsys
):
    from ovseg.training.callbacks import HistoryPlots

    def start_another(*_):
        Path("runs/tiny/version_1").mkdir()

    monkeypatch.setattr(HistoryPlots, "on_train_start", start_another)
    stop_in_epoch(2)
    assert train() == 130
    assert advised(capsys)[1][-2:] == ["--ckpt_path", str(LAST)]


def test_training_in_a_process_of_its_caller_advises_nothing(
    tiny, train, stop_in_epoch, capsys, monkeypatch
):
    from ovseg.cli import runs
    from ovseg.core.long_work import LIFELINE

    monkeypatch.setenv(LIFELINE, "1")
    monkeypatch.setattr(runs, "end_with_caller", lambda: None)
    stop_in_epoch(2)
    assert train() == 130
    assert last_line(capsys) == "error: stopped by Ctrl-C"


# A new training from earlier weights


def test_new_training_starts_from_the_weights_alone(tiny, train, trained, caplog):
    weights = trained.whole.checkpoint("best")
    frozen = ("--model.optimizer_args.lr", "1e-30", "--model.optimizer", "sgd")
    with caplog.at_level("INFO"):
        assert train("--model.weights", weights, *frozen, "--trainer.max_epochs", 1) == 0
    checkpoint = torch.load(LAST, weights_only=True)
    assert checkpoint["epoch"] == 0
    assert "weights" not in checkpoint["hyper_parameters"]
    expected = state(weights)
    for name, value in checkpoint["state_dict"].items():
        if name.endswith("weight"):
            assert torch.equal(value, expected[name]), name
    assert f"The network starts from {weights}, trained for" in caplog.text
    config = yaml.safe_load(Path("runs/tiny/version_0/config.yaml").read_text())
    assert config["model"]["weights"] == str(weights)


def test_run_folder_gives_its_best_weights(tiny, train, trained, caplog):
    with caplog.at_level("INFO"):
        assert train("--model.weights", trained.whole.path, "--trainer.max_epochs", 1) == 0
    assert str(trained.whole.checkpoint("best")) in caplog.text


def test_run_from_weights_that_are_gone_can_be_resumed(tiny, train, trained):
    shutil.copy(trained.whole.checkpoint("best"), "start.ckpt")
    assert train("--model.weights", "start.ckpt", "--trainer.max_epochs", 1) == 0
    os.remove("start.ckpt")
    config = ("--config", "runs/tiny/version_0/config.yaml")
    assert train(*config, "--ckpt_path", LAST, "--trainer.max_epochs", 2) == 0


def test_head_of_other_classes_stays_as_initialised(tiny, train, trained, caplog):
    categories = ("--data.classes", 5, "--model.loss", "ce_dice_loss", "--trainer.max_epochs", 1)
    with caplog.at_level("INFO"):
        assert train("--model.weights", trained.whole.path, *categories) == 0
    assert "head.weight, head.bias stay as initialised, for 5 classes." in caplog.text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model.arch_args.base_filters", "4"], "do not fit the network: "),
        (
            ["--model.arch", "efficient_unet", "--model.arch_args", "{}"],
            "are of the architecture flexible_unet, but model.arch is efficient_unet",
        ),
    ],
)
def test_weights_of_another_network_are_refused(tiny, train, trained, capsys, arguments, message):
    assert train("--model.weights", trained.whole.path, *arguments) == 2
    assert message in last_line(capsys)
    assert not (tiny / "runs").exists()


def test_weights_that_have_seen_the_validation_images_are_refused(
    write_config, fold_root, train, capsys, empty_figures
):
    write_config({**SETTINGS, "trainer": {**SETTINGS["trainer"], "max_epochs": 1}}, fold_root)
    assert train("--data.fold", 0) == 0
    assert train("--data.fold", 1, "--model.weights", LAST) == 2
    assert "with data.fold 0, but data.fold is 1" in last_line(capsys)
    assert train("--data.fold", 0, "--model.weights", LAST) == 0
    seen = Path("runs/tiny/version_2/checkpoints/last.ckpt")
    assert train("--data.train_on_valid", "true", "--model.weights", LAST) == 0
    assert train("--model.weights", seen) == 2
    assert "were trained on the images of valid" in last_line(capsys)
