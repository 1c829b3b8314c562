"""Cross-validation on tiny phantoms: resuming, refusing, and the out-of-fold scores."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from types import SimpleNamespace

import pandas as pd
import pytest
import yaml

from ovseg.cli.main import COMMANDS, _run
from ovseg.core.errors import InputError
from ovseg.experiments import cross_validation
from ovseg.experiments import train as training
from ovseg.experiments.child_training import training_process
from ovseg.experiments.cross_validation import find_last_checkpoint, is_finished
from ovseg.experiments.out_of_fold import NOTE, ratio_interval, summarise_folds
from ovseg.training import callbacks
from support import REPOSITORY

NETWORK = {"base_filters": 4, "base_kernel": 3, "num_layers": 3, "dilation": 1, "dropout_rate": 0.2}
SETTINGS = {
    "model": {
        "arch": "flexible_unet",
        "arch_args": {**NETWORK, "normalization": True},
        "optimizer": "keras_adam",
        "optimizer_args": {"lr": 0.02},
    },
    "data": {"image_size": 32, "batch_size": 4, "num_workers": 0, "augmentation": "flips"},
    "trainer": {"max_epochs": 3, "accelerator": "cpu", "num_sanity_val_steps": 0},
    "snapshots": {"num_infer_images": 0},
}


@pytest.fixture
def tiny(tmp_path, fold_root, monkeypatch):
    """A folder to work in, with tiny.yaml for a dataset of three folds."""
    settings = {**SETTINGS, "data": {**SETTINGS["data"], "root": str(fold_root)}}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(settings))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["ovseg"])
    return tmp_path


@pytest.fixture
def in_process(monkeypatch):
    """Trainings run in this process; the names of their configurations, in order."""
    started = []

    @contextmanager
    def run(path, ckpt_path=None):
        started.append(path.stem + ("" if ckpt_path is None else f" from {ckpt_path.parts[-3]}"))
        resume = [] if ckpt_path is None else ["--ckpt_path", str(ckpt_path)]
        try:
            code = _run(COMMANDS["train"], ["--config", str(path), *resume])
        except RuntimeError:
            code = -9
        yield SimpleNamespace(wait=lambda: code)

    monkeypatch.setattr(cross_validation, "training_process", run)
    monkeypatch.setattr(
        callbacks, "draw_curves", lambda table, path: None
    )  # most of the time of such trainings
    return started


def validate(output: str, *arguments: str) -> int:
    command = ["--config", "tiny.yaml", "--folds", "3", "--output", output, "--device", "cpu"]
    return _run(COMMANDS["cross_validate"], [*command, *arguments])


def die_after(monkeypatch, fold: int, epoch: int) -> None:
    """Let the training of a fold die once an epoch (from 0) is kept."""
    keep = callbacks.LastCheckpoint.on_train_epoch_end

    def keep_and_die(self, trainer, module):
        keep(self, trainer, module)
        if trainer.datamodule.hparams.fold == fold and trainer.current_epoch == epoch:
            raise RuntimeError("killed")

    monkeypatch.setattr(callbacks.LastCheckpoint, "on_train_epoch_end", keep_and_die)


def check_results(output) -> pd.DataFrame:
    table = pd.read_csv(output / "out_of_fold.csv")
    assert sorted(table["stem"]) == sorted(f"phantom_{n}" for n in range(17))
    assert all(
        int(stem.removeprefix("phantom_")) % 3 == fold
        for stem, fold in zip(table["stem"], table["fold"], strict=True)
    )
    assert (
        table["pred_pixels"].nunique() > 5
    )  # the networks say something, so tables that agree mean something
    summary = json.loads((output / "summary.json").read_text())
    assert summary["scores"]["dice"]["mean"] == pytest.approx(table["dice"].mean())
    assert "chosen on the images it is scored on" in summary["note"]
    assert [row["images"] for row in summary["per_fold"]] == [6, 6, 5]
    members = json.loads((output / "ensemble.json").read_text())
    assert (
        list(members) == ["members"]
        and [row["run"] for row in summary["per_fold"]] == members["members"]
    )
    assert all(
        (output / member / "checkpoints" / "best.ckpt").is_file() for member in members["members"]
    )
    assert (output / "out_of_fold.png").stat().st_size > 1000
    return table


def test_killed_fold_goes_on_and_the_table_is_that_of_an_uninterrupted_run(
    tiny, in_process, monkeypatch, capsys
):
    assert validate("whole") == 0 and in_process == ["fold_0", "fold_1", "fold_2"]
    output = capsys.readouterr().out
    assert "python scripts/evaluate.py --run whole" in output and NOTE in " ".join(output.split())
    assert not list(tiny.glob("whole/*/*/evaluation"))  # nothing looks at test
    assert not list(tiny.glob("whole/**/postprocessing.json"))
    in_process.clear()
    with monkeypatch.context() as patch:
        die_after(patch, fold=1, epoch=1)
        assert validate("killed") == 2
    assert "1 of 3 folds failed, see above: fold_1. The others are kept" in capsys.readouterr().err
    assert not (tiny / "killed" / "out_of_fold.csv").exists()
    assert validate("killed") == 0 and in_process == [
        "fold_0",
        "fold_1",
        "fold_2",
        "fold_1 from version_0",
    ]
    whole, killed = (check_results(tiny / name) for name in ("whole", "killed"))
    pd.testing.assert_frame_equal(whole, killed)
    runs = json.loads((tiny / "killed" / "ensemble.json").read_text())["members"]
    assert runs == ["fold_0/version_0", "fold_1/version_1", "fold_2/version_0"]
    assert validate("killed") == 0 and len(in_process) == 4  # all are finished
    assert validate("killed", "--model.optimizer_args.lr", "0.01") == 2
    assert (
        "other settings: config.model.optimizer_args.lr 0.02, now 0.01. Go back"
        in capsys.readouterr().err
    )
    check_damages(tiny / "killed", in_process, capsys)


def check_damages(output, started, capsys) -> None:
    """A marker or checkpoint that can't be trusted."""
    marker = output / "fold_2" / "finished.json"
    marker.write_text(json.dumps({"run": "version_0", "settings_sha256": "0"}))
    assert validate("killed") == 2 and "is of another cross-validation" in capsys.readouterr().err
    marker.unlink()
    assert (
        validate("killed") == 0 and len(started) == 4
    )  # killed before the marker: all epochs were done
    marker.unlink()
    last = output / "fold_2" / "version_0" / "checkpoints" / "last.ckpt"
    last.write_bytes(last.read_bytes()[:3000])
    table = pd.read_csv(output / "out_of_fold.csv")
    assert validate("killed") == 0 and started[-1] == "fold_2"  # anew
    assert "is not a whole checkpoint" in capsys.readouterr().out
    pd.testing.assert_frame_equal(check_results(output), table)


def test_training_that_early_stopping_ended_is_over(tiny, in_process):
    assert (
        _run(
            COMMANDS["train"],
            [
                "--config",
                "tiny.yaml",
                "--early_stopping.patience",
                "1",
                "--evaluate_test",
                "false",
                "--early_stopping.min_delta",
                "9",
                "--runs_dir",
                "stopped",
            ],
        )
        == 0
    )
    trainer = {"max_epochs": 3, "min_epochs": None}
    path, over = find_last_checkpoint(tiny / "stopped" / "tiny", trainer)
    assert (
        over and path.parts[-3] == "version_0" and not (path.parent.parent / "evaluation").exists()
    )
    checkpoint = cross_validation.read_checkpoint(path)
    assert checkpoint["epoch"] < 2 and not is_finished(checkpoint, {**trainer, "min_epochs": 4})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--folds", "5"],
            "has 3 folds, expected 5. Make it with folds: python scripts/make_phantoms.py",
        ),
        (["--fold", "3"], "There is no option --fold. Did you mean --folds"),
        (["--data.fold", "1"], "data.fold is 1, but cross_validate sets it for each fold"),
        (["--ckpt_path", "some.ckpt"], "There is no checkpoint some.ckpt"),
        (["--model.arch", "unet9000"], "Unknown arch 'unet9000'"),
        (
            ["--data.root", "gone"],
            "gone has no manifest.json, which tells the folds. .*prepare_data.py",
        ),
        (["--output", "."], "holds something else than a cross-validation"),
    ],
)
def test_mistake_is_one_line_before_anything_is_trained(
    tiny, in_process, capsys, arguments, message
):
    import re

    assert validate("out", *arguments) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and re.search(message, error)
    assert not in_process and not (tiny / "out").exists()


def test_fold_that_diverged_is_never_taken_as_finished(tiny, in_process, capsys):
    how = ("--model.optimizer_args.lr", "1e30", "--trainer.max_epochs", "1")
    for _ in range(2):  # all epochs are done in the second call too
        assert validate("out", *how) == 2
        assert "3 of 3 folds failed, see above: fold_0, fold_1, fold_2" in capsys.readouterr().err
    assert (
        not list(tiny.glob("out/*/finished.json")) and not (tiny / "out" / "summary.json").exists()
    )
    assert in_process == ["fold_0", "fold_1", "fold_2"] * 2  # anew, not from weights that are lost
    with pytest.raises(
        InputError, match="last.ckpt is of a training that diverged: val_loss is nan"
    ):
        cross_validation.read_finite_checkpoint(
            tiny / "out" / "fold_0" / "version_0" / "checkpoints" / "last.ckpt"
        )


def test_ensemble_is_kept_where_the_scoring_fails(tiny, in_process, monkeypatch):
    def fail(*_):
        raise InputError("no space left")

    monkeypatch.setattr(cross_validation, "score_folds", fail)
    assert validate("out", "--trainer.max_epochs", "1") == 2
    members = json.loads((tiny / "out" / "ensemble.json").read_text())["members"]
    assert members == ["fold_0/version_0", "fold_1/version_0", "fold_2/version_0"]


def test_postprocessing_is_chosen_once_for_the_ensemble(tiny, in_process, monkeypatch, capsys):
    calls = []
    monkeypatch.setattr(training, "search_postprocessing", calls.append)  # of a fold's own training
    assert validate("out", "--trainer.max_epochs", "1", "--postprocess", "true") == 0
    assert not calls and not list(tiny.glob("out/*/*/postprocessing.json"))
    result = json.loads((tiny / "out" / "postprocessing.json").read_text())
    assert (
        result["images"] == 17 and len(result["members"]) == 3
    )  # each image by the network that has not seen it
    assert "17 images of valid" in capsys.readouterr().out
    assert yaml.safe_load((tiny / "out" / "fold_0.yaml").read_text())["postprocess"] is False


def test_resuming_from_a_checkpoint_is_refused(tiny):
    config = {"data": {"fold": None, "root": "d"}, "ckpt_path": "some.ckpt"}
    with pytest.raises(
        InputError, match="ckpt_path is some.ckpt, but cross_validate sets it for each fold"
    ):
        cross_validation.cross_validate(config, 3, tiny / "out")


def test_fold_without_a_whole_epoch_failed(tiny, in_process, capsys):
    assert validate("out", "--trainer.fast_dev_run", "1") == 2
    output = capsys.readouterr()
    assert "Fold 2 completed no epoch" in output.out and "3 of 3 folds failed" in output.err


def test_intervals_by_images_and_by_groups():
    scores = {"dice": [0.9, 0.9, 0.1, None], "iou": [0.8, 0.8, 0.05, 0.0]}
    scores |= {name: [1.0] * 4 for name in ("sensitivity", "specificity", "precision")}
    areas = {
        "lesion_pixels": [10, 10, 10, 0],
        "pred_pixels": [10, 10, 2, 0],
        "hit_pixels": [9, 9, 1, 0],
    }
    table = pd.DataFrame({"stem": list("abcd"), "fold": [0, 0, 1, 1], **scores, **areas})
    summary = summarise_folds(table, dict(zip("abcd", (0, 0, 1, 2), strict=True)))
    assert summary["scores"]["dice"]["mean"] == pytest.approx(1.9 / 3)
    assert summary["scores"]["iou_pooled"]["value"] == pytest.approx(19 / 33)
    assert summary["scores"]["iou_pooled"]["ci95_groups"] == pytest.approx([1 / 11, 18 / 22])
    assert summary["scores"]["dice"]["ci95_groups"] == pytest.approx([0.1, 0.9])
    assert summary["per_fold"][1] == {
        "images": 2,
        "dice": pytest.approx(0.1),
        "iou": 0.025,
        "iou_pooled": 1 / 11,
    }
    assert "ci95_groups" not in summarise_folds(table, {})["scores"]["dice"]
    assert ratio_interval(pd.Series([1.0, 0]), pd.Series([2, 0])) is None


def test_training_ends_with_the_block_that_started_it(tiny):
    (tiny / "long.yaml").write_text(
        (tiny / "tiny.yaml").read_text().replace("max_epochs: 3", "max_epochs: 9999")
    )
    with pytest.raises(KeyboardInterrupt), training_process(tiny / "long.yaml") as process:
        os.kill(process.pid, 0)
        raise KeyboardInterrupt
    assert process.returncode not in (None, 0)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_sigkill_in_the_middle_of_a_fold_changes_nothing(tiny):
    command = [
        sys.executable,
        str(REPOSITORY / "scripts" / "cross_validate.py"),
        "--config",
        "tiny.yaml",
        "--folds",
    ]
    command += [
        "3",
        "--device",
        "cpu",
        "--trainer.max_epochs",
        "5",
        "--early_stopping.patience",
        "99",
        "--output",
    ]
    process = subprocess.Popen([*command, "killed"], start_new_session=True)
    last = tiny / "killed" / "fold_1" / "version_0" / "checkpoints" / "last.ckpt"
    deadline = time.monotonic() + 600
    while not last.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert last.exists() and not (tiny / "killed" / "fold_1" / "finished.json").exists()
    for name in ("killed", "whole"):
        subprocess.run([*command, name], check=True)
    assert (tiny / "killed" / "fold_1" / "version_1" / "checkpoints" / "last.ckpt").exists()
    killed, whole = (check_results(tiny / name) for name in ("killed", "whole"))
    pd.testing.assert_frame_equal(killed, whole)
