"""Sweeps on tiny phantoms: the space, resuming, failing and pruned trials."""

import builtins
import re
import sys
from contextlib import contextmanager
from types import SimpleNamespace

import pandas as pd
import pytest
import yaml

from ovseg.cli.main import COMMANDS, _run
from ovseg.core.errors import InputError
from ovseg.core.plots import draw_sweep
from ovseg.core.runs import RunFolder
from ovseg.experiments import sweep as sweep_module
from ovseg.experiments.sweep import read_space, watch, with_values
from ovseg.training import callbacks

optuna = pytest.importorskip("optuna", reason="needs the extra [sweep]")

SETTINGS = {
    "model": {
        "arch": "flexible_unet",
        "arch_args": {
            "base_filters": 4,
            "base_kernel": 3,
            "num_layers": 3,
            "dilation": 1,
            "normalization": True,
        },
    },
    "data": {"image_size": 32, "batch_size": 4, "num_workers": 0},
    "trainer": {"max_epochs": 2, "accelerator": "cpu", "num_sanity_val_steps": 0},
}
SPACE = "model.optimizer_args.lr: {low: 1e-3, high: 1e-1, log: true}\ndata.augmentation: {choices: [none, flips]}\n"


@pytest.fixture
def tiny(tmp_path, phantom_root, monkeypatch):
    """A folder to work in, with tiny.yaml and space.yaml."""
    settings = {**SETTINGS, "data": {**SETTINGS["data"], "root": str(phantom_root)}}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(settings))
    (tmp_path / "space.yaml").write_text(SPACE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["ovseg"])
    return tmp_path


@pytest.fixture
def in_process(monkeypatch):
    """Trainings run in this process; what happens to them by name, and the configurations of those that ran."""
    state = SimpleNamespace(interrupt=(), started=[])

    @contextmanager
    def run(path):
        state.started.append(yaml.safe_load(path.read_text()))
        if path.stem in state.interrupt:
            raise KeyboardInterrupt
        code = _run(COMMANDS["train"], ["--config", str(path)])
        yield SimpleNamespace(wait=lambda: code, poll=lambda: code)

    monkeypatch.setattr(sweep_module, "training_process", run)
    monkeypatch.setattr(
        callbacks, "draw_curves", lambda table, path: None
    )  # most of the time of such trainings
    return state


def search(output: str, trials: int, *arguments: str) -> int:
    command = [
        "--config",
        "tiny.yaml",
        "--space",
        "space.yaml",
        "--output",
        output,
        "--trials",
        str(trials),
    ]
    return _run(COMMANDS["sweep"], [*command, *arguments])


def parameters(output) -> pd.DataFrame:
    table = pd.read_csv(output / "trials.csv")
    return table[table["state"] == "complete"].drop(columns="trial").reset_index(drop=True)


def test_killed_search_goes_on_as_an_uninterrupted_one(tiny, in_process, capsys):
    assert search("whole", 3, "--postprocess", "true") == 0
    assert "Best of 3 trials: val_dice " in capsys.readouterr().out
    in_process.interrupt = ("trial_1",)
    assert search("killed", 2) == 130
    assert search("killed", 2) == 0 and search("killed", 3) == 0
    table = pd.read_csv(tiny / "killed" / "trials.csv")
    assert table["state"].tolist() == ["complete", "fail", "complete", "complete"]
    pd.testing.assert_frame_equal(parameters(tiny / "whole"), parameters(tiny / "killed"))
    assert parameters(tiny / "whole")["model.optimizer_args.lr"].between(1e-3, 1e-1).all()
    assert parameters(tiny / "whole")["model.optimizer_args.lr"].nunique() == 3
    check_files(tiny / "whole", in_process.started)
    count = len(in_process.started)
    assert (
        search("whole", 3, "--postprocess", "true") == 0 and len(in_process.started) == count
    )  # nothing is left to do
    assert search("whole", 3, "--postprocess", "true", "--trainer.max_epochs", "1") == 2
    assert (
        "study of other settings: config.trainer.max_epochs 2, now 1. Go back"
        in capsys.readouterr().err
    )
    assert search("whole", 3, "--postprocess", "true", "--study", "new.db") == 2
    assert "whole holds trials of another study than new.db" in capsys.readouterr().err


def check_files(output, started) -> None:
    """Values are the runs', the best is ready for train, and test was never scored."""
    table = pd.read_csv(output / "trials.csv")
    for number, value in zip(table["trial"], table["value"], strict=True):
        run = output / f"trial_{number}" / "version_0"
        assert pd.read_csv(run / "train_metrics.csv")["val_dice"].max() == value
        assert (
            not [*run.glob("evaluation*"), *run.glob("postprocessing.json")]
            and not (run / "epoch_change_infer").exists()
        )
    assert table["value"].nunique() > 1
    best, row = (
        yaml.safe_load((output / "best.yaml").read_text()),
        table.loc[table["value"].idxmax()],
    )
    assert best["model"]["optimizer_args"]["lr"] == row["model.optimizer_args.lr"]
    assert best["best_checkpoint"]["monitor"] == "val_dice" and best["evaluate_test"] is True
    assert best["postprocess"] is True and not any(config["postprocess"] for config in started)
    assert best["runs_dir"] == "runs" and best["snapshots"]["num_infer_images"] == 6
    assert all(config["best_checkpoint"]["monitor"] == "val_dice" for config in started)
    assert (output / "sweep.png").stat().st_size > 1000
    assert (
        _run(
            COMMANDS["train"],
            ["--config", str(output / "best.yaml"), "--trainer.fast_dev_run", "1"],
        )
        == 0
    )


def test_trials_that_fail_in_a_row_end_the_search(tiny, in_process, capsys):
    assert search("out", 2, "--trainer.gradient_clip_algorithm", "nonsense") == 2
    assert (
        "3 trials failed in a row, see above. Correct the configuration" in capsys.readouterr().err
    )
    assert pd.read_csv(tiny / "out" / "trials.csv")["state"].tolist() == ["fail"] * 3
    assert not (tiny / "out" / "best.yaml").exists()


class Process:
    """A training that writes an epoch's value whenever it is looked at."""

    def __init__(self, run, values: list[float]):
        self.run, self.values, self.epochs = run, values, 0
        run.mkdir(parents=True)

    def poll(self):
        self.epochs += 1
        pd.DataFrame({"val_dice": self.values[: self.epochs]}).to_csv(
            self.run / "train_metrics.csv"
        )
        return None if self.epochs <= len(self.values) else 0


def test_trial_below_the_median_is_told_to_stop(tmp_path, monkeypatch):
    monkeypatch.setattr(sweep_module.time, "sleep", lambda seconds: None)
    study = optuna.create_study(
        direction="maximize", pruner=optuna.pruners.MedianPruner(n_startup_trials=2)
    )
    for number, values in enumerate([[0.2, 0.4, 0.6], [0.3, 0.5, 0.7]]):
        trial = study.ask()
        assert not watch(
            Process(tmp_path / str(number), values),
            trial,
            RunFolder(tmp_path / str(number)),
            "val_dice",
        )
        study.tell(trial, values[-1])
        assert study.trials[number].intermediate_values == dict(enumerate(values, 1))
    trial = study.ask()
    assert watch(
        Process(tmp_path / "2", [0.3, 0.4, 0.5]), trial, RunFolder(tmp_path / "2"), "val_dice"
    )
    assert (tmp_path / "2" / "break_training").exists() and len(
        study.trials[2].intermediate_values
    ) == 2


CONFIG = {
    "model": {"optimizer_args": None, "arch": "a"},
    "data": {"root": "d", "batch_size": 2},
    "runs_dir": "runs",
}


def test_space_reads_numbers_as_they_are_meant(tmp_path):
    path = tmp_path / "space.yaml"
    path.write_text(
        "model.optimizer_args.lr: {low: 1e-4, high: 1e-2, log: true}\nmodel.arch: {choices: [a, b]}\n"
        "data.batch_size: {low: 2, high: 8, step: 2}\n"
    )
    space = read_space(path, CONFIG)
    assert space["model.optimizer_args.lr"] == optuna.distributions.FloatDistribution(
        1e-4, 1e-2, log=True
    )
    assert space["model.arch"] == optuna.distributions.CategoricalDistribution(("a", "b"))
    assert space["data.batch_size"] == optuna.distributions.IntDistribution(2, 8, step=2)
    changed = with_values(CONFIG, {"model.optimizer_args.lr": 0.1, "data.batch_size": 4})
    assert (
        changed["model"] == {"optimizer_args": {"lr": 0.1}, "arch": "a"}
        and changed["data"]["batch_size"] == 4
    )
    assert CONFIG["model"]["optimizer_args"] is None and CONFIG["data"]["batch_size"] == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "space.yaml line 1: the YAML is broken"),
        ("- a", "space.yaml names no key"),
        (
            "model.colour: {low: 1, high: 2}",
            "model.colour is no key of the configuration. `ovseg train --print_config`",
        ),
        ("data.batch_size.deep: {low: 1, high: 2}", "data.batch_size.deep is no key"),
        ("model: {low: 1, high: 2}", "model holds further keys"),
        ("model.optimizer_args: {low: 1, high: 2}", "model.optimizer_args holds further keys"),
        ("data.root: {choices: [a, b]}", "data.root has to be the same in all trials"),
        ("postprocess: {choices: [true, false]}", "postprocess has to be the same in all trials"),
        ("data.batch_size: 3", "data.batch_size is 3 .*expected {low, high} with log or step"),
        ("data.batch_size: {low: 3}", "data.batch_size is {'low': 3} .*expected"),
        ("data.batch_size: {low: 3, high: 1}", "expected {low, high}"),
        ("data.batch_size: {low: a, high: b}", "expected {low, high}"),
        ("data.batch_size: {choices: 4}", "expected {low, high}"),
        ("data.batch_size: {choices: [[1, 2]]}", "expected {low, high}"),
        ("data.batch_size: {choices: []}", "expected {low, high}"),
    ],
)
def test_mistake_in_the_space_is_an_error(tmp_path, text, message):
    (tmp_path / "space.yaml").write_text(text)
    with pytest.raises(InputError, match=message):
        read_space(tmp_path / "space.yaml", CONFIG)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--space", "gone.yaml"], "Cannot read gone.yaml"),
        (["--monitor", "test_dice"], "Unknown monitor 'test_dice'"),
        (["--trial", "3"], "There is no option --trial. Did you mean --trials"),
        (["--trials", "0"], "--trials is 0 and --seed 0, expected"),
        (["--study", "tiny.yaml"], "tiny.yaml is not a study of sweep"),
        (["--model.arch", "unet9000"], "Unknown arch 'unet9000'"),
    ],
)
def test_mistake_is_one_line_before_anything_is_trained(
    tiny, in_process, capsys, arguments, message
):
    assert search("out", 2, *arguments) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and re.search(message, error) and not in_process.started


@pytest.mark.parametrize("key", ["model.loss", "model.loss_args.alpha"])
def test_losses_of_different_kinds_are_not_compared(key):
    sweep_module.check_comparable({key: None}, "val_dice", "space.yaml")
    with pytest.raises(InputError, match=f"{key} changes what val_loss means"):
        sweep_module.check_comparable(
            {"data.batch_size": None, key: None}, "val_loss", "space.yaml"
        )


def test_trials_begin_anew(tiny):
    with pytest.raises(
        InputError, match="ckpt_path is some.ckpt, but trials start from the beginning"
    ):
        sweep_module.sweep(
            {"ckpt_path": "some.ckpt"}, tiny / "space.yaml", 1, tiny / "out", tiny / "sweep.db"
        )


def test_missing_optuna_is_one_sentence(monkeypatch):
    load = builtins.__import__

    def without(name, *arguments):
        if name == "optuna":
            raise ImportError
        return load(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(InputError, match="sweep needs Optuna: pip install 'ovseg\\[sweep\\]'"):
        sweep_module.import_optuna()


def test_picture_takes_booleans_and_texts(tmp_path):
    trials = pd.DataFrame(
        {
            "trial": [0, 1],
            "value": [0.1, 0.2],
            "a": [True, False],
            "b": ["x", "y"],
            "c": [1e-4, 1e-2],
        }
    )
    draw_sweep(
        trials, {"a": False, "b": False, "c": True}, "val_loss", "min", tmp_path / "sweep.png"
    )
    assert (tmp_path / "sweep.png").stat().st_size > 1000
