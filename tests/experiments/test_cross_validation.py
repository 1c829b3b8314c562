"""Cross-validation on tiny phantoms: trained folds, resumed and refused ones, and the ensemble."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
import yaml

from ovseg.core.checkpoints import read_checkpoint
from ovseg.core.errors import InputError
from ovseg.experiments import cross_validation
from ovseg.experiments.cross_validation import (
    claim_output,
    comparable_settings,
    cross_validate,
    find_last_checkpoint,
    finished_run,
    is_finished,
    read_finite_checkpoint,
)
from ovseg.experiments.out_of_fold import BEST_EPOCH_NOTE, LAST_EPOCH_NOTE
from ovseg.training.callbacks import LastCheckpoint

SETTINGS = {
    "model": {
        "arch": "flexible_unet",
        "arch_args": {
            "base_filters": 4,
            "base_kernel": 3,
            "num_layers": 3,
            "dilation": 1,
            "dropout_rate": 0.2,
            "normalization": True,
        },
        "optimizer": "keras_adam",
        "optimizer_args": {"lr": 0.02},
    },
    "data": {"image_size": 32, "batch_size": 4, "num_workers": 0, "augmentation": "flips"},
    "trainer": {"max_epochs": 2, "accelerator": "cpu", "num_sanity_val_steps": 0},
    "snapshots": {"num_infer_images": 0},
}
ONE_EPOCH = ("--trainer.max_epochs", "1")
FOLDS = ["fold_0", "fold_1", "fold_2"]


@pytest.fixture
def tiny(write_config, fold_root, empty_figures):
    """A folder to work in, with tiny.yaml for a dataset of three folds."""
    return write_config(SETTINGS, fold_root)


@pytest.fixture
def in_process(monkeypatch, run_command):
    """Trainings run in this process; the list of those that were started, in order."""
    started = []

    @contextmanager
    def run(path, ckpt_path=None):
        name = path.stem
        resume = []
        if ckpt_path is not None:
            name += f" from {ckpt_path.parts[-3]}"
            resume = ["--ckpt_path", ckpt_path]
        started.append(name)
        try:
            code = run_command("train", "--config", path, *resume)
        except RuntimeError:  # of `die_after`
            code = -9
        yield SimpleNamespace(wait=lambda: code)

    monkeypatch.setattr(cross_validation, "training_process", run)
    return started


@pytest.fixture
def validate(run_command):
    """A function that runs `ovseg cross_validate` on tiny.yaml and returns its exit code."""

    def run(output: str, *arguments: str) -> int:
        command = ["cross_validate", "--config", "tiny.yaml", "--folds", "3", "--output", output]
        return run_command(*command, "--device", "cpu", *arguments)

    return run


@pytest.fixture(scope="module")
def fold_runs(tmp_path_factory, fold_root, run_command):
    """A folder with the run of one epoch of each fold. Not to be changed."""
    folder = tmp_path_factory.mktemp("folds")
    settings = {
        **SETTINGS,
        "trainer": {**SETTINGS["trainer"], "max_epochs": 1},
        "runs_dir": str(folder),
        "evaluate_test": False,
    }
    for fold in range(3):
        data = {**SETTINGS["data"], "root": str(fold_root), "fold": fold}
        path = folder / f"fold_{fold}.yaml"
        path.write_text(yaml.safe_dump({**settings, "data": data}))
        assert run_command("train", "--config", path) == 0
    return folder


@pytest.fixture
def copied_runs(monkeypatch, fold_runs):
    """Trainings end at once: their run is copied from `fold_runs`."""

    @contextmanager
    def copy(path, ckpt_path=None):
        shutil.copytree(fold_runs / path.stem, path.parent / path.stem)
        yield SimpleNamespace(wait=lambda: 0)

    monkeypatch.setattr(cross_validation, "training_process", copy)


def die_after(monkeypatch, fold: int, epoch: int) -> None:
    """Let the training of a fold die once the checkpoint of an epoch (from 0) is kept."""
    keep = LastCheckpoint.on_train_epoch_end

    def keep_and_die(self, trainer, module):
        keep(self, trainer, module)
        if trainer.datamodule.hparams.fold == fold and trainer.current_epoch == epoch:
            raise RuntimeError("killed")

    monkeypatch.setattr(LastCheckpoint, "on_train_epoch_end", keep_and_die)


def check_results(output: Path) -> pd.DataFrame:
    """Check the files of a finished cross-validation of `fold_root`, and return the table."""
    table = pd.read_csv(output / "out_of_fold.csv")
    assert sorted(table["stem"]) == sorted(f"phantom_{n}" for n in range(17))
    for stem, fold in zip(table["stem"], table["fold"], strict=True):
        assert int(stem.removeprefix("phantom_")) % 3 == fold
    # The networks predict something, so tables that agree mean something.
    assert table["pred_pixels"].nunique() > 5

    summary = json.loads((output / "summary.json").read_text())
    assert summary["scores"]["dice"]["mean"] == pytest.approx(table["dice"].mean())
    assert summary["note"] == BEST_EPOCH_NOTE
    assert [row["images"] for row in summary["per_fold"]] == [6, 6, 5]

    ensemble = json.loads((output / "ensemble.json").read_text())
    assert ensemble == {"members": [row["run"] for row in summary["per_fold"]]}
    for member in ensemble["members"]:
        assert (output / member / "checkpoints" / "best.ckpt").is_file()
    assert (output / "out_of_fold.png").is_file()
    return table


def test_killed_fold_is_resumed_and_the_table_is_that_of_an_uninterrupted_run(
    tiny, in_process, validate, monkeypatch, capsys
):
    assert validate("whole") == 0
    assert in_process == FOLDS
    output = capsys.readouterr().out
    assert "--run whole" in output
    assert BEST_EPOCH_NOTE in " ".join(output.split())
    assert not list(tiny.glob("whole/*/*/evaluation"))  # nothing looks at test
    assert not list(tiny.glob("whole/**/postprocessing.json"))

    in_process.clear()
    with monkeypatch.context() as patch:
        die_after(patch, fold=1, epoch=0)
        assert validate("killed") == 2
    assert "1 of 3 folds failed, see above: fold_1. The others are kept" in capsys.readouterr().err
    assert not (tiny / "killed" / "out_of_fold.csv").exists()
    assert validate("killed") == 0
    assert in_process == [*FOLDS, "fold_1 from version_0"]

    whole = check_results(tiny / "whole")
    killed = check_results(tiny / "killed")
    pd.testing.assert_frame_equal(whole, killed)
    members = json.loads((tiny / "killed" / "ensemble.json").read_text())["members"]
    assert members == ["fold_0/version_0", "fold_1/version_1", "fold_2/version_0"]


def test_finished_folds_are_not_trained_again(tiny, copied_runs, request, validate):
    assert validate("out", *ONE_EPOCH) == 0
    table = check_results(tiny / "out")
    started = request.getfixturevalue("in_process")  # from here on
    assert validate("out", *ONE_EPOCH) == 0
    assert not started

    # A training that was killed after its last epoch, before it was marked as finished.
    (tiny / "out" / "fold_2" / "finished.json").unlink()
    assert validate("out", *ONE_EPOCH) == 0
    assert not started
    pd.testing.assert_frame_equal(check_results(tiny / "out"), table)


def test_ensemble_on_test_is_offered_where_there_is_a_test_split(
    tiny, copied_runs, fold_root, validate, capsys
):
    assert validate("out", *ONE_EPOCH) == 0
    assert "The ensemble of the folds on test: ovseg evaluate --run out" in capsys.readouterr().out
    shutil.copytree(fold_root, tiny / "no_test", ignore=shutil.ignore_patterns("test"))
    assert validate("all", *ONE_EPOCH, "--data.root", "no_test") == 0
    output = capsys.readouterr().out
    assert "ovseg evaluate --run all --split valid" in output
    assert "on test" not in output


def test_fold_with_a_damaged_checkpoint_is_trained_again(
    tiny, copied_runs, request, validate, capsys
):
    assert validate("out", *ONE_EPOCH) == 0
    table = check_results(tiny / "out")
    (tiny / "out" / "fold_2" / "finished.json").unlink()
    last = tiny / "out" / "fold_2" / "version_0" / "checkpoints" / "last.ckpt"
    last.write_bytes(last.read_bytes()[:3000])
    started = request.getfixturevalue("in_process")  # from here on
    assert validate("out", *ONE_EPOCH) == 0
    assert started == ["fold_2"]
    assert "is not a whole checkpoint" in capsys.readouterr().out
    pd.testing.assert_frame_equal(check_results(tiny / "out"), table)


def test_fold_that_diverged_is_never_taken_as_finished(tiny, in_process, validate, capsys):
    diverging = ("--model.optimizer_args.lr", "1e30", *ONE_EPOCH)
    for _ in range(2):  # all epochs are done in the second call too
        assert validate("out", *diverging) == 2
        assert "3 of 3 folds failed, see above: fold_0, fold_1, fold_2" in capsys.readouterr().err
    assert not list(tiny.glob("out/*/finished.json"))
    assert not (tiny / "out" / "summary.json").exists()
    assert in_process == FOLDS * 2  # from the beginning, not from weights that are lost
    assert not list(tiny.rglob("*.ckpt"))


def test_checkpoint_of_an_infinite_loss_is_not_resumed(tiny, train):
    assert train("--evaluate_test", "false", *ONE_EPOCH) == 0
    last = tiny / "runs" / "tiny" / "version_0" / "checkpoints" / "last.ckpt"
    checkpoint = torch.load(last, weights_only=True)
    checkpoint["callbacks"]["HistoryPlots"]["rows"][-1]["val_loss"] = float("inf")
    torch.save(checkpoint, last)
    message = "last.ckpt is of a training that diverged: val_loss is inf"
    with pytest.raises(InputError, match=message):
        read_finite_checkpoint(last)


def test_training_that_early_stopping_ended_is_finished(tiny, train):
    stopping = ("--early_stopping.patience", "1", "--early_stopping.min_delta", "9")
    stopping += ("--trainer.max_epochs", "4")
    assert train(*stopping, "--evaluate_test", "false", "--runs_dir", "stopped") == 0
    trainer = {"max_epochs": 4, "min_epochs": None}
    path, finished = find_last_checkpoint(tiny / "stopped" / "tiny", trainer)
    assert finished
    assert path.parts[-3] == "version_0"
    assert not (path.parent.parent / "evaluation").exists()
    checkpoint = read_checkpoint(path)
    assert checkpoint["epoch"] < 3
    assert not is_finished(checkpoint, {**trainer, "min_epochs": 5})


@pytest.mark.parametrize(
    ("max_epochs", "expected"), [(1, True), (2, False), (-1, False), (None, False)]
)
def test_training_is_finished_when_all_epochs_are_done(fold_runs, max_epochs, expected):
    checkpoint = read_checkpoint(fold_runs / "fold_0/version_0/checkpoints/last.ckpt")
    trainer = {"max_epochs": max_epochs, "min_epochs": None}
    assert is_finished(checkpoint, trainer) == expected


def test_older_checkpoint_is_taken_if_the_newest_diverged(fold_runs, tmp_path, capsys):
    folder = tmp_path / "fold_0"
    for number in range(2):
        shutil.copytree(fold_runs / "fold_0" / "version_0", folder / f"version_{number}")
    last = folder / "version_1" / "checkpoints" / "last.ckpt"
    checkpoint = torch.load(last, weights_only=True)
    checkpoint["callbacks"]["HistoryPlots"]["rows"][-1]["val_loss"] = float("inf")
    torch.save(checkpoint, last)
    trainer = {"max_epochs": 3, "min_epochs": None}
    path, finished = find_last_checkpoint(folder, trainer)
    assert path == folder / "version_0" / "checkpoints" / "last.ckpt"
    assert not finished
    assert "diverged: val_loss is inf" in capsys.readouterr().out


def test_fold_without_a_whole_epoch_failed(tiny, in_process, validate, capsys):
    assert validate("out", "--trainer.fast_dev_run", "1") == 2
    output = capsys.readouterr()
    assert "Fold 2 completed no epoch" in output.out
    assert "3 of 3 folds failed" in output.err


def test_ensemble_is_kept_if_the_scoring_fails(tiny, copied_runs, validate, monkeypatch):
    def fail(*_):
        raise InputError("no space left")

    monkeypatch.setattr(cross_validation, "score_folds", fail)
    assert validate("out", *ONE_EPOCH) == 2
    members = json.loads((tiny / "out" / "ensemble.json").read_text())["members"]
    assert members == ["fold_0/version_0", "fold_1/version_0", "fold_2/version_0"]


def test_evaluation_and_comparison_of_valid_are_out_of_fold(
    tiny, copied_runs, validate, run_command, capsys
):
    for name in ("a", "b"):
        assert validate(name, *ONE_EPOCH, "--best_checkpoint.monitor", "epoch") == 0
    summary = json.loads((tiny / "a" / "summary.json").read_text())
    assert summary["note"] == LAST_EPOCH_NOTE
    assert run_command("evaluate", "--run", "a", "--split", "valid", "--device", "cpu") == 0
    found = json.loads((tiny / "a" / "evaluation_valid" / "summary.json").read_text())
    assert found["checkpoint"] == "out of fold, 3 networks"
    assert found["images"] == 17
    assert found["scores"]["dice"]["mean"] == pytest.approx(summary["scores"]["dice"]["mean"])
    of_image = pd.read_csv(tiny / "a" / "evaluation_valid" / "per_image.csv")
    out_of_fold = pd.read_csv(tiny / "a" / "out_of_fold.csv").drop(columns="fold")
    pd.testing.assert_frame_equal(of_image.drop(columns="seconds"), out_of_fold)

    compared = ("compare", "--runs", "a", "b", "--split", "valid", "--output", "c")
    assert run_command(*compared, "--device", "cpu") == 0
    assert json.loads((tiny / "c" / "comparison.json").read_text())["images"] == 17


def test_members_that_hold_out_the_same_fold_are_not_scored_out_of_fold(
    tiny, copied_runs, validate, run_command, capsys
):
    assert validate("a", *ONE_EPOCH) == 0
    members = ["fold_0/version_0", "fold_0/version_0", "fold_1/version_0"]
    (tiny / "a" / "ensemble.json").write_text(json.dumps({"members": members}))
    assert run_command("evaluate", "--run", "a", "--split", "valid", "--device", "cpu") == 2
    assert "may have seen valid images of the other" in capsys.readouterr().err


def test_postprocessing_is_chosen_once_for_the_ensemble(tiny, copied_runs, validate, capsys):
    assert validate("out", *ONE_EPOCH, "--postprocess", "true") == 0
    assert not list(tiny.glob("out/*/*/postprocessing.json"))
    result = json.loads((tiny / "out" / "postprocessing.json").read_text())
    assert result["images"] == 17  # each image by the network that has not seen it
    assert len(result["members"]) == 3
    assert "17 images of valid" in capsys.readouterr().out
    for fold in FOLDS:
        config = yaml.safe_load((tiny / "out" / f"{fold}.yaml").read_text())
        assert config["postprocess"] is False  # no fold chooses its own
        assert config["evaluate_test"] is False


# The card of a network that was trained on all images


@pytest.fixture
def scored(tiny, copied_runs, validate, run_command):
    """A folder with a cross-validation `a`, scored out of fold, and a run of all images."""
    assert validate("a", *ONE_EPOCH) == 0
    assert run_command("evaluate", "--run", "a", "--split", "valid", "--report", "minimal") == 0
    everything = ("--data.train_on_valid", "true", "--evaluate_test", "false")
    assert run_command("train", "--config", "tiny.yaml", *ONE_EPOCH, *everything) == 0
    return tiny


@pytest.fixture
def export_all(run_command):
    """A function that exports the run of all images with the scores of `a`."""

    def export(*arguments) -> int:
        run = ("--run", "runs/tiny/version_0", "--format", "safetensors")
        return run_command("export", *run, "--cross_validation", "a", *arguments)

    return export


def test_card_has_the_scores_of_a_cross_validation(scored, export_all):
    assert export_all() == 0
    summary = json.loads((scored / "a" / "evaluation_valid" / "summary.json").read_text())
    export = scored / "runs" / "tiny" / "version_0" / "export"
    scores = json.loads((export / "model.json").read_text())["scores"]
    assert scores["scores"] == summary["scores"]
    card = (export / "README.md").read_text()
    assert f"| Dice per image | {summary['scores']['dice_original']['mean']:.3f} |" in card
    assert "17 images, each scored by the one of 3 networks of the same recipe" in card
    assert "trained on all of them; at their original sizes" in card


def test_scores_of_another_recipe_are_refused(scored, export_all, capsys):
    config = scored / "runs" / "tiny" / "version_0" / "config.yaml"
    config.write_text(config.read_text().replace("max_epochs: 1", "max_epochs: 3"))
    assert export_all() == 2
    error = capsys.readouterr().err
    assert "trained with other settings" in error
    assert "trainer.max_epochs 1, now 3" in error
    assert not (scored / "runs" / "tiny" / "version_0" / "export").exists()

    config.write_text("")
    assert export_all() == 2
    assert "is not the configuration that ovseg train wrote" in capsys.readouterr().err
    (scored / "a" / "cross_validation.json").write_text("{}")
    assert export_all() == 2
    assert "cross_validation.json" in capsys.readouterr().err


def test_scores_of_other_networks_and_post_processing_are_refused(scored, export_all, capsys):
    path = scored / "a" / "evaluation_valid" / "summary.json"
    summary = json.loads(path.read_text())
    other = {**summary["postprocessing"], "threshold": 0.3}
    path.write_text(json.dumps({**summary, "postprocessing": other}))
    assert export_all() == 2
    assert "the same post-processing" in capsys.readouterr().err
    path.write_text(json.dumps({**summary, "checkpoint_sha256": "0" * 64}))
    assert export_all() == 2
    assert "is of other networks than those of a. Score again" in capsys.readouterr().err
    path.unlink()
    assert export_all() == 2
    assert "ovseg evaluate --run a --split valid" in capsys.readouterr().err
    assert export_all("--cross_validation", "runs") == 2
    assert "Name a folder that ovseg cross_validate wrote" in capsys.readouterr().err


# Refusals


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data.fold", "1"], "data.fold is 1, but cross_validate sets it for each fold"),
        (["--fold", "3"], "has no option --fold. Did you mean --folds"),
        (["--model.arch", "unet9000"], "Unknown arch 'unet9000'"),
    ],
)
def test_mistake_is_one_line_before_anything_is_trained(
    tiny, in_process, validate, capsys, arguments, message
):
    assert validate("out", *arguments) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert message in error
    assert not in_process
    assert not (tiny / "out").exists()


def test_resuming_from_a_checkpoint_is_refused(tmp_path):
    config = {"data": {"fold": None, "root": "d"}, "ckpt_path": "some.ckpt"}
    message = "ckpt_path is some.ckpt, but cross_validate sets it for each fold"
    with pytest.raises(InputError, match=message):
        cross_validate(config, 3, tmp_path / "out")


@pytest.mark.parametrize(
    ("root", "folds", "message"),
    [
        (None, 5, "has 3 folds, expected 5. Make it with folds: "),
        ("gone", 3, "gone has no manifest.json"),
    ],
)
def test_dataset_of_other_folds_is_refused(fold_root, root, folds, message):
    config = {"data": {"root": root or str(fold_root)}}
    with pytest.raises(InputError, match=message):
        comparable_settings(config, folds)


def test_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.txt").touch()
    with pytest.raises(InputError, match="holds something else than a cross-validation"):
        claim_output(tmp_path, {})


def test_folder_of_other_settings_is_refused(tmp_path):
    settings = {"config": {"model": {"optimizer_args": {"lr": 0.02}}}, "folds": 3}
    digest = claim_output(tmp_path / "out", settings)
    assert claim_output(tmp_path / "out", settings) == digest
    changed = {"config": {"model": {"optimizer_args": {"lr": 0.01}}}, "folds": 3}
    message = "other settings: config.model.optimizer_args.lr 0.02, now 0.01. Go back"
    with pytest.raises(InputError, match=message):
        claim_output(tmp_path / "out", changed)


def test_fold_of_other_settings_is_refused(tmp_path):
    path = tmp_path / "fold_2" / "finished.json"
    path.parent.mkdir()
    path.write_text(json.dumps({"run": "version_0", "settings_sha256": "0"}))
    assert finished_run(tmp_path, 2, "0") == path.parent / "version_0"
    assert finished_run(tmp_path, 1, "0") is None
    with pytest.raises(InputError, match="is of another cross-validation"):
        finished_run(tmp_path, 2, "1")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_sigkill_in_the_middle_of_a_fold_changes_nothing(tiny):
    command = [sys.executable, "-m", "ovseg", "cross_validate", "--config", "tiny.yaml"]
    command += ["--folds", "3", "--device", "cpu", "--trainer.max_epochs", "5"]
    command += ["--early_stopping.patience", "99", "--output"]
    process = subprocess.Popen([*command, "killed"], start_new_session=True)
    last = tiny / "killed" / "fold_1" / "version_0" / "checkpoints" / "last.ckpt"
    deadline = time.monotonic() + 600
    while not last.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert last.exists()
    assert not (tiny / "killed" / "fold_1" / "finished.json").exists()

    for name in ("killed", "whole"):
        subprocess.run([*command, name], check=True)
    assert (tiny / "killed" / "fold_1" / "version_1" / "checkpoints" / "last.ckpt").exists()
    killed = check_results(tiny / "killed")
    whole = check_results(tiny / "whole")
    pd.testing.assert_frame_equal(killed, whole)
