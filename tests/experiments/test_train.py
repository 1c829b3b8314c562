"""Whole runs on tiny phantoms: run folder, resume, stop, two processes, and every shipped YAML."""

import contextlib
import csv
import io
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from pytorch_lightning import Callback, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint, Timer

from ovseg.cli.main import main
from ovseg.core.checkpoints import read_checkpoint, read_members
from ovseg.core.configs import list_configs
from ovseg.core.errors import InputError
from ovseg.core.runs import RunFolder
from ovseg.data.datamodule import OvarianTumorDataModule
from ovseg.experiments.train import TrainCLI, build_cli, read_configuration
from ovseg.inference.labels import Postprocessing, to_dict
from ovseg.models import build_model
from ovseg.training.callbacks import BestCheckpoint, EpochSeed, EpochSnapshots
from ovseg.training.checkpoint_io import WholeCheckpointIO
from ovseg.training.task import SegmentationTask

SETTINGS = {
    "model": {
        "arch": "flexible_unet",
        "arch_args": {
            "base_filters": 2,
            "base_kernel": 3,
            "num_layers": 3,
            "dilation": 2,
            "dropout_rate": 0.2,
        },
        "optimizer": "keras_adam",
        "optimizer_args": {"lr": 0.003},
        "scheduler": "keras_plateau",
        "scheduler_args": {"factor": 0.5, "patience": 1, "min_delta": 10.0},
    },
    "data": {"image_size": 32, "batch_size": 4, "num_workers": 0, "augmentation": "standard"},
    "trainer": {"max_epochs": 3, "accelerator": "cpu", "num_sanity_val_steps": 0},
}
ONE_EPOCH = ("--trainer.max_epochs", "1")
NO_SCORES = ("--evaluate_test", "false", "--snapshots.num_infer_images", "0")


@pytest.fixture
def tiny(write_config, phantom_root, empty_figures):
    """A folder to work in, with tiny.yaml."""
    return write_config(SETTINGS, phantom_root)


@pytest.fixture(scope="module")
def make_finished(tmp_path_factory, phantom_root, run_command):
    """A function that trains tiny.yaml; its run folder and what was printed."""

    def make(*arguments: str) -> SimpleNamespace:
        folder = tmp_path_factory.mktemp("finished")
        settings = {**SETTINGS, "data": {**SETTINGS["data"], "root": str(phantom_root)}}
        (folder / "tiny.yaml").write_text(yaml.safe_dump(settings))
        command = ["train", "--config", folder / "tiny.yaml", "--runs_dir", folder / "runs"]
        out = io.StringIO()
        err = io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            assert run_command(*command, *arguments) == 0
        run = RunFolder(folder / "runs" / "tiny" / "version_0")
        return SimpleNamespace(run=run, out=out.getvalue(), err=err.getvalue())

    return make


@pytest.fixture(scope="module")
def finished(make_finished):
    """A run of two epochs. Not to be changed."""
    return make_finished("--trainer.max_epochs", "2")


@pytest.fixture(scope="module")
def longer(make_finished):
    """The same run with a third epoch. Not to be changed."""
    return make_finished("--trainer.max_epochs", "3", *NO_SCORES)


def weights(path: Path) -> dict[str, torch.Tensor]:
    state = torch.load(path, weights_only=True)["state_dict"]
    return {name: value for name, value in state.items() if name.startswith("network")}


def learning_rate(path: Path) -> float:
    optimizers = torch.load(path, weights_only=True)["optimizer_states"]
    return optimizers[0]["param_groups"][0]["lr"]


def read_csv(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8") as file:
        return list(csv.DictReader(file))


# The run folder


def test_run_folder_is_complete(finished):
    run = finished.run.path
    expected = {"config.yaml", "metrics.csv", "checkpoints/best.ckpt", "checkpoints/last.ckpt"}
    for name in ("train_losses", "train_metrics"):
        expected |= {f"{name}.csv", f"{name}.png"}
    for epoch in (1, 2):
        for stem in ("", "_phantom_17", "_phantom_19"):
            expected.add(f"epoch_change_infer/Epoch_{epoch}{stem}.png")
    for name in ("evaluation.csv", "per_image.csv", "summary.json", "cases.png"):
        expected.add(f"evaluation/{name}")

    assert expected <= {str(path.relative_to(run)) for path in run.rglob("*")}
    losses = read_csv(run / "train_losses.csv")
    assert [row["epoch"] for row in losses] == ["1", "2"]
    assert list(losses[0]) == ["epoch", "loss", "val_loss"]
    metrics = read_csv(run / "train_metrics.csv")
    assert list(metrics[0])[:3] == ["epoch", "dice_coef", "val_dice_coef"]
    assert np.array(Image.open(run / "epoch_change_infer" / "Epoch_1.png")).shape[2] == 3


def test_scores_and_progress_are_printed(finished):
    assert "Dice per image" in finished.out
    assert f"Run folder: {finished.run.path}" in finished.out
    assert "epoch 2/2" in finished.err


def test_every_result_of_a_leaking_split_says_leakage(tiny, train, phantom_root, capsys):
    shutil.copytree(phantom_root, tiny / "leaking")
    (tiny / "leaking" / "manifest.json").write_text(json.dumps({"leakage": True}))
    no_snapshots = ("--snapshots.num_infer_images", "0")
    assert train("--data.root", "leaking", *ONE_EPOCH, *no_snapshots) == 0
    evaluation = tiny / "runs" / "tiny" / "version_0" / "evaluation"
    assert json.loads((evaluation / "summary.json").read_text())["leakage"] is True
    assert read_csv(evaluation / "evaluation.csv")[0]["leakage"] == "True"
    assert "LEAKAGE" in capsys.readouterr().out


def test_second_run_gets_its_own_folder(tiny, train):
    (tiny / "runs" / "tiny" / "version_0").mkdir(parents=True)
    assert train(*ONE_EPOCH, *NO_SCORES) == 0
    runs = sorted(path.name for path in (tiny / "runs" / "tiny").iterdir())
    assert runs == ["version_0", "version_1"]
    assert (tiny / "runs" / "tiny" / "version_1" / "config.yaml").is_file()


def test_run_of_another_runs_configuration_has_its_name(tmp_path, monkeypatch, finished):
    monkeypatch.chdir(tmp_path)
    cli = build_cli(TrainCLI, ["--config", str(finished.run.config), "--runs_dir", "again"])
    assert cli.run_folder.path == Path("again/tiny/version_0")


def test_checkpoint_loads_without_the_run(finished, tmp_path):
    path = shutil.copy(finished.run.checkpoint("last"), tmp_path / "alone.ckpt")
    task = SegmentationTask.load_from_checkpoint(path, weights_only=True)
    assert task.hparams.arch == "flexible_unet"
    assert task.hparams.arch_args["num_layers"] == 3


def test_same_seed_gives_the_same_weights(tiny, train, finished):
    assert train("--trainer.max_epochs", "2", *NO_SCORES) == 0
    again = weights(tiny / "runs/tiny/version_0/checkpoints/last.ckpt")
    for name, value in weights(finished.run.checkpoint("last")).items():
        assert torch.equal(value, again[name]), name


def test_validation_score_is_the_evaluated_one(finished, run_command, tmp_path):
    """The number shown in training is the number reported, on the same split."""
    where = ("--run", finished.run.path, "--split", "valid", "--output", tmp_path / "scores")
    assert run_command("evaluate", *where, "--device", "cpu") == 0
    summary = json.loads((tmp_path / "scores" / "summary.json").read_text())
    shown = read_csv(finished.run.path / "train_metrics.csv")[summary["epoch"] - 1]
    scores = summary["scores"]
    val_dice = pytest.approx(float(shown["val_dice"]), abs=1e-6, nan_ok=True)
    assert scores["dice"]["mean"] == val_dice
    assert scores["iou_pooled"] == pytest.approx(float(shown["val_iou_pooled"]), abs=1e-6)


@pytest.mark.filterwarnings("ignore:.*could not find the monitored key")
@pytest.mark.filterwarnings("ignore:Early stopping conditioned on metric")
def test_training_without_a_complete_epoch_says_so(tiny, train, capsys):
    assert train("--trainer.max_steps", "1") == 0
    assert "No epoch was completed" in capsys.readouterr().out
    assert (tiny / "runs" / "tiny" / "version_0" / "config.yaml").is_file()
    assert not (tiny / "runs" / "tiny" / "version_0" / "evaluation").exists()


# Resuming


@pytest.mark.parametrize("workers", ["0", "2"])
def test_resume_equals_an_uninterrupted_run(workers, tiny, train, finished, longer):
    last = finished.run.checkpoint("last")
    assert train("--ckpt_path", last, "--data.num_workers", workers, *NO_SCORES) == 0
    resumed = RunFolder(tiny / "runs" / "tiny" / "version_0")
    for name in ("last", "best"):
        expected = weights(longer.run.checkpoint(name))
        found = weights(resumed.checkpoint(name))
        for key, value in expected.items():
            assert torch.allclose(found[key], value, atol=1e-6), (name, key)
    losses = read_csv(resumed.curves("losses", ".csv"))
    assert losses == read_csv(longer.run.curves("losses", ".csv"))
    rate = learning_rate(resumed.checkpoint("last"))
    assert rate == learning_rate(longer.run.checkpoint("last")) < 0.003


def test_resume_from_a_checkpoint_of_an_unfinished_validation_is_an_error(
    tiny, train, finished, capsys
):
    checkpoint = torch.load(finished.run.checkpoint("last"), weights_only=True)
    epochs = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]
    epochs["processed"] -= 1  # all batches are done, the validation is not
    torch.save(checkpoint, tiny / "interrupted.ckpt")
    assert train("--ckpt_path", tiny / "interrupted.ckpt", *NO_SCORES) == 2
    assert "was stopped inside an epoch" in capsys.readouterr().err


def test_compiled_training_resumes_from_and_to_plain_checkpoints(tiny, train, monkeypatch):
    compiled = []
    compile_ = torch.compile

    def compile_quickly(function, **_):
        compiled.append(function)
        return compile_(function, backend="aot_eager")

    monkeypatch.setattr(torch, "compile", compile_quickly)
    config = yaml.safe_load((tiny / "tiny.yaml").read_text())
    config["model"]["arch_args"]["num_layers"] = 2
    config["data"] |= {"batch_size": 7, "augmentation": "none"}  # two batches of one shape
    (tiny / "tiny.yaml").write_text(yaml.safe_dump(config))
    first = Path("runs/tiny/version_0/checkpoints/last.ckpt")
    second = Path("runs/tiny/version_1/checkpoints/last.ckpt")

    assert train(*ONE_EPOCH, *NO_SCORES) == 0
    assert not compiled
    resume = ("--ckpt_path", first, "--trainer.max_epochs", "2")
    assert train("--model.compile", "true", *resume, *NO_SCORES) == 0
    assert len(compiled) == 1
    before = weights(first)
    after = weights(second)
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[name], value) for name, value in after.items())
    assert train("--ckpt_path", second, "--trainer.max_epochs", "3", *NO_SCORES) == 0
    assert len(compiled) == 1


def test_resumed_run_is_named_to_the_best_checkpoint(tiny, finished):
    """Also if the configuration has a checkpoint callback of its own."""
    config = yaml.safe_load((tiny / "tiny.yaml").read_text())
    own = {"class_path": "ModelCheckpoint", "init_args": {"filename": "own"}}
    config["trainer"]["callbacks"] = [own]
    (tiny / "tiny.yaml").write_text(yaml.safe_dump(config))
    last = finished.run.checkpoint("last")
    cli = build_cli(TrainCLI, ["--config", "tiny.yaml", "--ckpt_path", str(last)])
    checkpoints = cli.trainer.checkpoint_callbacks
    assert type(checkpoints[0]) is ModelCheckpoint
    best = next(each for each in checkpoints if isinstance(each, BestCheckpoint))
    assert best.resumed_run.path == finished.run.path


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--trainer.max_epochs", "2"], "has done 2 epochs of trainer.max_epochs 2"),
        (["--model.loss", "dice_loss"], "was trained with model.loss bce_dice_loss"),
        (["--model.arch_args.num_layers", "4"], "was trained with model.arch_args"),
        (
            ["--model.arch", "smp", "--model.arch_args", "{}"],
            "was trained with model.arch flexible_unet",
        ),
    ],
)
def test_resume_refuses_what_it_would_ignore(tiny, finished, arguments, message):
    resume = ["--ckpt_path", str(finished.run.checkpoint("last"))]
    with pytest.raises(InputError, match=message):
        read_configuration(["--config", "tiny.yaml", *resume, *arguments])


def test_refused_resume_leaves_no_run(tiny, train, finished, capsys):
    assert train("--ckpt_path", finished.run.checkpoint("last"), *ONE_EPOCH) == 2
    assert "has done 2 epochs" in capsys.readouterr().err
    assert not (tiny / "runs").exists()


def test_truncated_checkpoint_is_an_error(tmp_path, finished):
    (tmp_path / "cut.ckpt").write_bytes(finished.run.checkpoint("last").read_bytes()[:3000])
    with pytest.raises(InputError, match="cut.ckpt is not a whole checkpoint"):
        read_checkpoint(tmp_path / "cut.ckpt")


@pytest.mark.parametrize("section", ["hyper_parameters", "datamodule_hyper_parameters"])
def test_checkpoint_that_names_an_instantiator_is_refused(section, tmp_path, finished):
    checkpoint = torch.load(finished.run.checkpoint("last"), weights_only=True)
    checkpoint[section]["_instantiator"] = "pytorch_lightning.cli.instantiate_module"
    torch.save(checkpoint, tmp_path / "own.ckpt")
    with pytest.raises(InputError, match="never writes: _instantiator"):
        read_members(tmp_path / "own.ckpt")


def test_no_pretrained_name_stays_in_a_checkpoint():
    arch_args = {"encoder_name": "resnet18", "encoder_weights": "imagenet"}
    checkpoint = {"hyper_parameters": {"arch_args": arch_args}}
    SegmentationTask(arch_args={"base_filters": 2, "num_layers": 2}).on_save_checkpoint(checkpoint)
    kept = checkpoint["hyper_parameters"]["arch_args"]
    assert kept == {"encoder_name": "resnet18", "encoder_weights": None}


# The parts of a training


def test_checkpoints_are_written_by_the_plugin_that_renames_whole_files(tiny):
    cli = build_cli(TrainCLI, ["--config", "tiny.yaml"])
    assert isinstance(cli.trainer.strategy.checkpoint_io, WholeCheckpointIO)


def test_seed_of_an_epoch_is_set_before_any_other_callback(tiny):
    cli = build_cli(TrainCLI, ["--config", "tiny.yaml", "--data.seed", "5"])
    first = cli.trainer.callbacks[0]
    assert isinstance(first, EpochSeed)
    assert first.seed == 5


def test_single_callback_of_the_configuration_needs_no_list(tiny):
    config = yaml.safe_load((tiny / "tiny.yaml").read_text())
    timer = {"class_path": "Timer", "init_args": {"duration": {"minutes": 5}}}
    config["trainer"]["callbacks"] = timer
    (tiny / "tiny.yaml").write_text(yaml.safe_dump(config))
    cli = build_cli(TrainCLI, ["--config", "tiny.yaml"])
    assert any(isinstance(callback, Timer) for callback in cli.trainer.callbacks)


def test_weights_trained_channels_last_are_plain_ones(phantom_root, tmp_path):
    arguments = {"encoder_name": "resnet18", "decoder_args": {"decoder_channels": [16, 8, 8, 4, 4]}}
    task = SegmentationTask("smp", arguments, channels_last=True)
    trainer = Trainer(
        accelerator="cpu",
        max_steps=1,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(task, OvarianTumorDataModule(str(phantom_root), image_size=64, num_workers=0))

    weight = task.network.state_dict()["network.encoder.layer1.0.conv1.weight"]
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert not weight.is_contiguous()
    plain = build_model("smp", **arguments).eval()
    plain.load_state_dict(task.network.state_dict())
    image = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    assert torch.allclose(plain(image), task.network.eval()(image), rtol=0, atol=1e-4)


def test_library_use_without_the_command_line(phantom_root, tmp_path):
    data = OvarianTumorDataModule(str(phantom_root), image_size=32, num_workers=0)
    task = SegmentationTask(
        arch_args={"base_filters": 2, "num_layers": 3}, optimizer_args={"lr": 1e-3}
    )
    trainer = Trainer(
        fast_dev_run=True,
        accelerator="cpu",
        enable_progress_bar=False,
        logger=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(task, data)
    assert torch.isfinite(trainer.callback_metrics["val_loss"])


# How a training ends


class AskToStop(Callback):
    """Does what a user does during the first epoch."""

    def on_train_start(self, trainer, pl_module):
        RunFolder(Path(trainer.log_dir)).break_file.touch()


def test_break_training_stops_after_the_epoch(tiny):
    cli = build_cli(TrainCLI, ["--config", "tiny.yaml", "--snapshots.num_infer_images", "0"])
    cli.trainer.callbacks.append(AskToStop())
    cli.fit()
    assert len(read_csv(cli.run_folder.curves("losses", ".csv"))) == 1
    assert cli.run_folder.checkpoint("last").exists()
    assert not cli.run_folder.break_file.exists()


def test_diverged_training_is_an_error_and_is_not_evaluated(tiny, train, capsys):
    diverging = ("--model.optimizer_args.lr", "1e30")
    assert train(*diverging, *ONE_EPOCH, "--snapshots.num_infer_images", "0") == 2
    assert "Training diverged: val_loss is nan" in capsys.readouterr().err
    assert not (tiny / "runs" / "tiny" / "version_0" / "evaluation").exists()


@pytest.mark.parametrize(
    ("workers", "sent", "code", "message"),
    [
        (0, signal.SIGTERM, 143, "stopped by SIGTERM"),
        (0, signal.SIGINT, 130, "stopped by Ctrl-C"),
        # A scheduler and Ctrl-C in a terminal signal the loader processes too.
        (2, signal.SIGTERM, 143, "stopped by SIGTERM"),
        (2, signal.SIGINT, 130, "stopped by Ctrl-C"),
    ],
)
def test_signal_keeps_a_checkpoint_and_is_no_success(tiny, workers, sent, code, message):
    arguments = ["train", "--config", "tiny.yaml", "--trainer.max_epochs", "1000"]
    arguments += ["--early_stopping.patience", "999", *NO_SCORES]
    arguments += ["--data.num_workers", str(workers), "--data.cache", "false"]
    process = subprocess.Popen(
        [sys.executable, "-m", "ovseg", *arguments],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
        # A background job of a shell ignores Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    last = tiny / "runs" / "tiny" / "version_0" / "checkpoints" / "last.ckpt"
    deadline = time.monotonic() + 120
    while not last.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, sent)
    _, errors = process.communicate(timeout=60)

    assert process.returncode == code
    assert "Traceback" not in errors
    line = errors.splitlines()[-1]
    assert line.startswith(f"error: {message}. Epoch ")
    safe, _, command = line.partition(". Continue with: ")
    relative = last.relative_to(tiny)
    assert safe.endswith(f"Epoch {read_checkpoint(last)['epoch'] + 1} is safe in {relative}")
    assert command == f"ovseg {shlex.join(arguments)} --resume"
    assert weights(last)
    assert not list(last.parent.glob(".*tmp*"))


# Post-processing


def test_postprocessing_is_chosen_before_the_evaluation(tiny, train):
    assert train("--postprocess", "true", *ONE_EPOCH, "--snapshots.num_infer_images", "0") == 0
    run = tiny / "runs" / "tiny" / "version_0"
    found = json.loads((run / "postprocessing.json").read_text())
    summary = json.loads((run / "evaluation" / "summary.json").read_text())
    assert summary["postprocessing"] == found["postprocessing"]
    assert summary["postprocessing_file"] == "postprocessing.json"
    assert found["members"][0].endswith("best.ckpt")
    assert yaml.safe_load((run / "config.yaml").read_text())["postprocess"] is True


def test_postprocessing_of_the_configuration_is_used_as_it_is(tiny, train, capsys):
    fixed = "{flips: [horizontal], threshold: 0.4}"
    assert train("--postprocess", fixed, *ONE_EPOCH, "--snapshots.num_infer_images", "0") == 0
    run = tiny / "runs" / "tiny" / "version_0"
    summary = json.loads((run / "evaluation" / "summary.json").read_text())
    expected = Postprocessing(flips=("horizontal",), threshold=0.4)
    assert summary["postprocessing"] == to_dict(expected)
    output = " ".join(capsys.readouterr().out.split())  # a long path wraps the line
    assert "flips horizontal" in output


def test_scores_of_valid_say_that_it_was_trained_on(tiny, train, capsys, caplog):
    with caplog.at_level("INFO"):
        arguments = ("--data.train_on_valid", "true", *ONE_EPOCH, "--evaluate_test", "false")
        assert train(*arguments, "--snapshots.num_infer_images", "0") == 0
    assert "17 train, 3 valid, 3 test images" in caplog.text
    assert "their scores are not those of new images" in caplog.text
    run = str(tiny / "runs" / "tiny" / "version_0")
    for split, is_new in (("valid", False), ("test", True)):
        assert main(["evaluate", "--run", run, "--split", split]) == 0
        assert ("TRAINED ON these images" in capsys.readouterr().out) is not is_new
    assert main(["postprocess", "--run", run]) == 2
    assert "nothing can be chosen on them" in capsys.readouterr().err


def test_postprocessing_is_chosen_only_if_asked_for(finished):
    assert not finished.run.postprocessing.exists()


def test_run_is_evaluated_plainly_if_no_postprocessing_can_be_chosen(
    write_config, train, tmp_path, save_png, capsys
):
    for number, (split, lesion) in enumerate(
        [("train", 255), ("train", 255), ("valid", 0), ("test", 255)]
    ):
        image = np.random.default_rng(number).integers(0, 255, (32, 32, 3), np.uint8)
        mask = np.zeros((32, 32), np.uint8)
        mask[8:20, 8:20] = lesion
        save_png(tmp_path / "d" / split / "images" / f"{number}.png", image)
        save_png(tmp_path / "d" / split / "masks" / f"{number}.png", mask)
    tiny = write_config(SETTINGS, tmp_path / "d")

    assert train("--postprocess", "true", *ONE_EPOCH, "--snapshots.num_infer_images", "0") == 0
    message = "The run is used without post-processing: No image of valid in"
    assert message in capsys.readouterr().out
    summary = json.loads((tiny / "runs/tiny/version_0/evaluation/summary.json").read_text())
    assert summary["postprocessing"] == to_dict(Postprocessing())


# Mistakes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model.arch", "unet9000"], "Unknown arch 'unet9000'. Choose one of: attention_unet, "),
        (["--data.root", "gone"], "There is no dataset folder gone"),
        (["--ckpt_path", "gone.ckpt"], "There is no checkpoint gone.ckpt"),
        (["--trainer.accelerator", "cuda"], "trainer.accelerator is cuda"),
        (["--runs_dir", "tiny.yaml"], "Choose another --runs_dir"),
        (["--postprocess", "{flip: [horizontal]}"], "postprocess does not take flip"),
        (["--postprocess", "{threshold: 2}"], "threshold"),
        (
            ["--postprocess", "true", "--data.train_on_valid", "true"],
            "postprocess: true has nothing to choose on",
        ),
    ],
)
def test_mistake_is_one_line_and_leaves_nothing(tiny, train, capsys, arguments, message):
    if arguments[-1] == "cuda" and torch.cuda.is_available():
        pytest.skip("this machine has what the command line asks for")
    assert train(*arguments) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert message in error
    assert not (tiny / "runs").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--trainer.max_epochs", "0"], "trainer.max_epochs is 0"),
        (["--trainer.limit_train_batches", "0"], "trainer.limit_train_batches is 0"),
    ],
)
def test_configuration_that_trains_nothing_is_refused(tiny, arguments, message):
    with pytest.raises(InputError, match=message):
        read_configuration(["--config", "tiny.yaml", *arguments])


def test_unknown_loss_is_refused():
    with pytest.raises(InputError, match="Unknown loss 'hope'"):
        SegmentationTask(arch_args={"base_filters": 2, "num_layers": 2}, loss="hope")


def test_argument_of_another_architecture_is_refused():
    with pytest.raises(InputError, match="arch flexible_unet does not take depth"):
        SegmentationTask(arch_args={"depth": 3})


def test_image_size_out_of_range_is_refused(phantom_root):
    with pytest.raises(InputError, match="data.image_size is 3"):
        OvarianTumorDataModule(str(phantom_root), image_size=3)


def test_negative_number_of_snapshots_is_refused():
    with pytest.raises(InputError, match="num_infer_images is -1"):
        EpochSnapshots(-1)


def test_schedule_that_cannot_act_is_logged(tiny, caplog):
    with caplog.at_level("INFO"):
        read_configuration(["--config", "tiny.yaml", "--early_stopping.patience", "1"])
    assert "Raise early_stopping.patience above 1" in caplog.text


@pytest.mark.parametrize("key", ["arch_args", "optimizer_args", "scheduler_args"])
def test_class_path_inside_arguments_is_not_called(key, tiny):
    code = {"class_path": "logging.FileHandler", "init_args": {"filename": str(tiny / "called")}}
    settings = yaml.safe_load((tiny / "tiny.yaml").read_text())
    for value in ({**settings["model"][key], "extra": code}, code):
        settings["model"][key] = value
        (tiny / "tiny.yaml").write_text(yaml.safe_dump(settings))
        with pytest.raises(InputError):
            read_configuration(["--config", "tiny.yaml"])
    assert not (tiny / "called").exists()


# Configurations


def test_print_config_shows_every_default(tiny, train, capsys):
    assert train("--print_config") == 0
    config = yaml.safe_load(capsys.readouterr().out)
    assert config["data"]["mask_threshold"] == 127
    assert config["model"]["loss"] == "bce_dice_loss"


def test_whole_configuration_is_read_without_a_run(tiny):
    config = read_configuration(["--config", "tiny.yaml", "--data.batch_size", "2"])
    assert config["data"]["batch_size"] == 2
    assert config["data"]["mask_threshold"] == 127
    assert config["ckpt_path"] is None
    assert not (tiny / "runs").exists()


def test_shipped_configuration_is_read_by_its_name(phantom_root):
    config = read_configuration(["--config", "unet_small", "--data.root", str(phantom_root)])
    assert config["data"]["image_size"] == 128


CONFIGS = {}
for name, path in list_configs().items():
    # Those of `adapt` are tested with it.
    if "adaptation" not in yaml.safe_load(path.read_text()):
        CONFIGS[name] = path
SMALLER = {
    "flexible_unet": ["--model.arch_args.base_filters", "1", "--model.arch_args.num_layers", "4"],
    "attention_unet": ["--model.arch_args.base_filters", "1"],
    "multires_unet": ["--model.arch_args.base_filters", "4"],
    "unet3plus": ["--model.arch_args.base_filters", "2"],
    "swin_unet": ["--model.arch_args.filter_num_begin", "8", "--model.arch_args.image_size", "64"],
    "efficient_unet": [],
    "deeplabv3plus": [],
    "transunet": [
        *("--model.arch_args.embed_dim", "8", "--model.arch_args.num_mlp", "8"),
        *("--model.arch_args.filter_num", "[4,4]", "--model.arch_args.image_size", "64"),
    ],
    "u2net": ["--model.arch_args.base_filters", "4"],
    "sharp_unet": ["--model.arch_args.filters", "[4,4]"],
    "efficientnet_b7_unet": [
        *("--model.arch_args.efficientnet", "B0"),
        *("--model.arch_args.encoder_weights", "null"),
    ],
    "smp": [
        *("--model.arch_args.encoder_name", "resnet18"),
        *("--model.arch_args.encoder_weights", "null"),
    ],
}


@pytest.mark.parametrize("name", CONFIGS)
def test_every_config_trains(tmp_path, run_command, monkeypatch, phantom_root, name):
    monkeypatch.chdir(tmp_path)
    config = yaml.safe_load(CONFIGS[name].read_text())
    smaller = SMALLER[config["model"]["arch"]]
    if config["model"]["arch_args"].get("architecture") == "dpt":
        smaller = ["--model.arch_args.encoder_name", "tu-vit_tiny_patch16_224", *smaller[2:]]
    data = ["--data.root", phantom_root, "--data.image_size", "64", "--data.num_workers", "0"]
    data += ["--data.batch_size", "2"]
    if "classes" in config["data"]:
        data += ["--data.classes", "5"]  # phantoms have four categories
    trainer = ["--trainer.fast_dev_run", "1", "--trainer.accelerator", "cpu"]
    assert run_command("train", "--config", name, *smaller, *data, *trainer) == 0
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in CONFIGS if name.startswith("encoders/")])
def test_every_encoder_of_the_hub_trains_a_few_steps(
    tmp_path, run_command, monkeypatch, phantom_root, name
):
    monkeypatch.chdir(tmp_path)
    data = ["--data.root", phantom_root, "--data.image_size", "64", "--data.num_workers", "0"]
    data += ["--data.batch_size", "2", "--model.arch_args.encoder_weights", "null"]
    trainer = ["--trainer.fast_dev_run", "2", "--trainer.accelerator", "cpu"]
    assert run_command("train", "--config", name, *data, *trainer) == 0


# Several processes

TWO_PROCESSES = """
import json, sys
from pytorch_lightning import Trainer
from ovseg.cli.main import main
from ovseg.data.datamodule import OvarianTumorDataModule
from ovseg.training.task import SegmentationTask

if __name__ == "__main__":
    root, *arguments = sys.argv[1:]
    assert main(["train", *arguments]) == 0
    path = "runs/tiny/version_0/checkpoints/last.ckpt"
    task = SegmentationTask.load_from_checkpoint(path, weights_only=True)
    data = OvarianTumorDataModule(root, image_size=32, batch_size=2, num_workers=0, classes=5)
    trainer = Trainer(
        accelerator="cpu", devices=2, strategy="ddp", logger=False, enable_progress_bar=False
    )
    scores = trainer.test(task, data, verbose=False)[0]
    if trainer.is_global_zero:
        print("SCORES", json.dumps(scores))
"""


@pytest.mark.timeout(300)
def test_two_processes_train_and_score_as_one(tiny, phantom_root):
    (tiny / "two.py").write_text(TWO_PROCESSES)
    command = [sys.executable, "two.py", str(phantom_root), "--config", "tiny.yaml"]
    command += ["--trainer.devices", "2", "--trainer.strategy", "ddp", *ONE_EPOCH, *NO_SCORES]
    # The loss for categories: such a run has the scores of one class too.
    command += ["--data.classes", "5", "--model.loss", "ce_dice_loss"]
    result = subprocess.run(
        command,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    line = next(line for line in result.stdout.splitlines() if line.startswith("SCORES"))
    of_two = json.loads(line.removeprefix("SCORES"))

    assert [run.name for run in (tiny / "runs" / "tiny").iterdir()] == ["version_0"]
    run = RunFolder(tiny / "runs" / "tiny" / "version_0")
    assert len(read_csv(run.curves("losses", ".csv"))) == 1
    last = run.checkpoint("last")
    task = SegmentationTask.load_from_checkpoint(last, weights_only=True)
    data = OvarianTumorDataModule(
        str(phantom_root), image_size=32, batch_size=2, num_workers=0, classes=5
    )
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False)
    of_one = trainer.test(task, data, verbose=False)[0]
    assert of_one == pytest.approx(of_two, abs=1e-6, nan_ok=True)
