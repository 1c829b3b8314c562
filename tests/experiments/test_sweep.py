"""Sweeps on tiny phantoms: the space, continued searches, failing and pruned trials."""

import builtins
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import yaml

from ovseg.core.errors import InputError
from ovseg.core.plots import draw_sweep
from ovseg.core.runs import RunFolder
from ovseg.experiments import sweep as sweep_module
from ovseg.experiments.sweep import (
    check_arguments,
    check_comparable,
    import_optuna,
    open_study,
    read_space,
    read_values,
    sweep,
    watch,
    with_values,
)

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
    "trainer": {"max_epochs": 1, "accelerator": "cpu", "num_sanity_val_steps": 0},
}
SPACE = """
model.optimizer_args.lr: {low: 1e-3, high: 1e-1, log: true}
data.augmentation: {choices: [none, flips]}
"""


@pytest.fixture
def tiny(write_config, phantom_root, empty_figures):
    """A folder to work in, with tiny.yaml and space.yaml."""
    folder = write_config(SETTINGS, phantom_root)
    (folder / "space.yaml").write_text(SPACE)
    return folder


@pytest.fixture
def in_process(monkeypatch, run_command):
    """Trainings run in this process.

    Its `interrupt` names the trials in which Ctrl-C is pressed, its `started` has all
    configurations.
    """
    state = SimpleNamespace(interrupt=(), started=[])

    @contextmanager
    def run(path):
        state.started.append(yaml.safe_load(path.read_text()))
        if path.stem in state.interrupt:
            raise KeyboardInterrupt
        code = run_command("train", "--config", path)
        yield SimpleNamespace(wait=lambda: code, poll=lambda: code)

    monkeypatch.setattr(sweep_module, "training_process", run)
    return state


@pytest.fixture
def search(run_command):
    """A function that runs `ovseg sweep` on tiny.yaml and space.yaml; it returns the exit code."""

    def run(output: str, trials: int, *arguments: str) -> int:
        command = ["sweep", "--config", "tiny.yaml", "--space", "space.yaml"]
        return run_command(*command, "--output", output, "--trials", trials, *arguments)

    return run


def complete_trials(output: Path) -> pd.DataFrame:
    """The rows of the complete trials, without their numbers."""
    table = pd.read_csv(output / "trials.csv")
    return table[table["state"] == "complete"].drop(columns="trial").reset_index(drop=True)


def test_killed_search_tries_the_values_of_an_uninterrupted_one(tiny, in_process, search, capsys):
    assert search("whole", 3, "--postprocess", "true") == 0
    assert "Best of 3 trials: val_dice " in capsys.readouterr().out
    whole = complete_trials(tiny / "whole")
    check_values(tiny / "whole")
    check_configurations(tiny / "whole", in_process.started)
    in_process.started.clear()

    in_process.interrupt = ("trial_1",)
    assert search("killed", 2) == 130
    assert search("killed", 3) == 0
    states = pd.read_csv(tiny / "killed" / "trials.csv")["state"].tolist()
    assert states == ["complete", "fail", "complete", "complete"]
    pd.testing.assert_frame_equal(whole, complete_trials(tiny / "killed"))
    assert whole["model.optimizer_args.lr"].between(1e-3, 1e-1).all()
    assert whole["model.optimizer_args.lr"].nunique() == 3
    assert whole["value"].nunique() > 1

    in_process.started.clear()
    assert search("killed", 3) == 0
    assert not in_process.started  # nothing is left to do
    assert search("killed", 3, "--trainer.max_epochs", "3") == 2
    message = "study of other settings: config.trainer.max_epochs 1, now 3. Go back"
    assert message in capsys.readouterr().err


def check_values(output: Path) -> None:
    """A trial's value is that of its run, and test was never scored."""
    table = pd.read_csv(output / "trials.csv")
    for number, value in zip(table["trial"], table["value"], strict=True):
        run = RunFolder(output / f"trial_{number}" / "version_0")
        assert pd.read_csv(run.curves("metrics", ".csv"))["val_dice"].max() == value
        assert not run.evaluation("test").exists()
        assert not run.postprocessing.exists()
        assert not run.snapshots.exists()
    assert (output / "sweep.png").is_file()


def check_configurations(output: Path, started: list[dict]) -> None:
    """`best.yaml` is ready for train; trials leave out what their comparison does not need."""
    table = pd.read_csv(output / "trials.csv")
    row = table.loc[table["value"].idxmax()]
    best = yaml.safe_load((output / "best.yaml").read_text())
    assert best["model"]["optimizer_args"]["lr"] == row["model.optimizer_args.lr"]
    assert best["best_checkpoint"]["monitor"] == "val_dice"
    assert best["evaluate_test"] is True
    assert best["postprocess"] is True
    assert best["runs_dir"] == "runs"
    assert best["snapshots"]["num_infer_images"] == 6
    for config in started:
        assert config["best_checkpoint"]["monitor"] == "val_dice"
        assert config["postprocess"] is False


def test_best_configuration_trains(tiny, in_process, search, run_command):
    assert search("out", 1) == 0
    assert run_command("train", "--config", "out/best.yaml", "--trainer.fast_dev_run", "1") == 0


def test_trials_that_fail_in_a_row_end_the_search(tiny, in_process, search, capsys):
    assert search("out", 2, "--trainer.gradient_clip_algorithm", "nonsense") == 2
    message = "3 trials failed in a row, see above. Correct the configuration"
    assert message in capsys.readouterr().err
    assert pd.read_csv(tiny / "out" / "trials.csv")["state"].tolist() == ["fail"] * 3
    assert not (tiny / "out" / "best.yaml").exists()


class WritingProcess:
    """A training that writes the value of one more epoch whenever it is looked at."""

    def __init__(self, run: RunFolder, values: list[float]):
        self.run = run
        self.values = values
        self.epochs = 0
        run.path.mkdir(parents=True)

    def poll(self) -> int | None:
        self.epochs += 1
        table = pd.DataFrame({"val_dice": self.values[: self.epochs]})
        table.to_csv(self.run.curves("metrics", ".csv"))
        return None if self.epochs <= len(self.values) else 0


def test_trial_below_the_median_is_asked_to_stop(tmp_path, monkeypatch):
    monkeypatch.setattr(sweep_module, "POLL_SECONDS", 0)
    pruner = optuna.pruners.MedianPruner(n_startup_trials=2)
    study = optuna.create_study(direction="maximize", pruner=pruner)
    for number, values in enumerate([[0.2, 0.4, 0.6], [0.3, 0.5, 0.7]]):
        trial = study.ask()
        run = RunFolder(tmp_path / str(number))
        assert not watch(WritingProcess(run, values), trial, run, "val_dice")
        study.tell(trial, values[-1])
        assert study.trials[number].intermediate_values == dict(enumerate(values, 1))

    trial = study.ask()
    run = RunFolder(tmp_path / "2")
    assert watch(WritingProcess(run, [0.3, 0.4, 0.5]), trial, run, "val_dice")
    assert run.break_file.exists()
    assert len(study.trials[2].intermediate_values) == 2


def test_run_without_curves_has_no_values(tmp_path):
    run = RunFolder(tmp_path)
    assert read_values(run, "val_dice") == []
    run.curves("metrics", ".csv").write_text("epoch,dice_coef\n1,0.5\n")
    assert read_values(run, "val_dice") == []


def test_folder_with_trials_of_another_study_is_refused(tmp_path):
    (tmp_path / "out" / "trial_0").mkdir(parents=True)
    settings = {"monitor": "val_dice", "prune": False}
    with pytest.raises(InputError, match="out holds trials of another study than .*new.db"):
        open_study(tmp_path / "new.db", tmp_path / "out", settings)


def test_file_that_is_no_study_is_refused(tmp_path):
    (tmp_path / "tiny.yaml").write_text("model: {}")
    settings = {"monitor": "val_dice", "prune": False}
    with pytest.raises(InputError, match="tiny.yaml is not a study of sweep"):
        open_study(tmp_path / "tiny.yaml", tmp_path / "out", settings)


# The space

CONFIG = {
    "model": {"optimizer_args": None, "arch": "a"},
    "data": {"root": "d", "batch_size": 2},
    "runs_dir": "runs",
}


def test_space_reads_numbers_as_they_are_meant(tmp_path):
    path = tmp_path / "space.yaml"
    path.write_text(
        "model.optimizer_args.lr: {low: 1e-4, high: 1e-2, log: true}\n"
        "model.arch: {choices: [a, b]}\n"
        "data.batch_size: {low: 2, high: 8, step: 2}\n"
    )
    kinds = optuna.distributions
    assert read_space(path, CONFIG) == {
        "model.optimizer_args.lr": kinds.FloatDistribution(1e-4, 1e-2, log=True),
        "model.arch": kinds.CategoricalDistribution(("a", "b")),
        "data.batch_size": kinds.IntDistribution(2, 8, step=2),
    }


def test_values_are_set_at_dotted_keys_of_a_copy():
    changed = with_values(CONFIG, {"model.optimizer_args.lr": 0.1, "data.batch_size": 4})
    assert changed["model"] == {"optimizer_args": {"lr": 0.1}, "arch": "a"}
    assert changed["data"]["batch_size"] == 4
    assert CONFIG["model"]["optimizer_args"] is None
    assert CONFIG["data"]["batch_size"] == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "space.yaml line 1 is not valid YAML"),
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


def test_missing_space_is_an_error(tmp_path):
    with pytest.raises(InputError, match="Cannot read .*gone.yaml"):
        read_space(tmp_path / "gone.yaml", CONFIG)


@pytest.mark.parametrize("key", ["model.loss", "model.loss_args.alpha"])
def test_losses_of_different_kinds_are_not_compared(key):
    check_comparable({key: None}, "val_dice", "space.yaml")
    with pytest.raises(InputError, match=f"{key} changes what val_loss means"):
        check_comparable({"data.batch_size": None, key: None}, "val_loss", "space.yaml")


# Mistakes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--trial", "3"], "has no option --trial. Did you mean --trials"),
        (["--model.arch", "unet9000"], "Unknown arch 'unet9000'"),
    ],
)
def test_mistake_is_one_line_before_anything_is_trained(
    tiny, in_process, search, capsys, arguments, message
):
    assert search("out", 2, *arguments) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert message in error
    assert not in_process.started


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"monitor": "test_dice"}, "Unknown monitor 'test_dice'"),
        ({"trials": 0}, "--trials is 0 and --seed 0, expected"),
        ({"seed": -1}, "--trials is 1 and --seed -1, expected"),
    ],
)
def test_argument_out_of_range_is_refused(changed, message):
    arguments = {"trials": 1, "monitor": "val_dice", "seed": 0, **changed}
    with pytest.raises(InputError, match=message):
        check_arguments({"ckpt_path": None}, **arguments)


def test_resuming_from_a_checkpoint_is_refused(tmp_path):
    config = {"ckpt_path": "some.ckpt"}
    message = "ckpt_path is some.ckpt, but trials start from the beginning"
    with pytest.raises(InputError, match=message):
        sweep(config, tmp_path / "space.yaml", 1, tmp_path / "out", tmp_path / "sweep.db")


def test_missing_optuna_is_one_sentence(monkeypatch):
    import_ = builtins.__import__

    def import_all_but_optuna(name, *arguments):
        if name == "optuna":
            raise ImportError
        return import_(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", import_all_but_optuna)
    with pytest.raises(InputError, match="sweep needs Optuna: pip install 'ovseg\\[sweep\\]'"):
        import_optuna()


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
    is_logarithmic = {"a": False, "b": False, "c": True}
    draw_sweep(trials, is_logarithmic, "val_loss", "min", tmp_path / "sweep.png")
    assert (tmp_path / "sweep.png").stat().st_size > 1000
