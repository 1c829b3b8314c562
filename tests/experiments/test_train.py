"""Whole runs on tiny phantoms: the run folder, resuming, stopping, several processes, and every shipped YAML."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from pytorch_lightning import Trainer

from ovseg.cli.main import main
from ovseg.core.checkpoints import read_members
from ovseg.core.errors import InputError
from ovseg.data.datamodule import OvarianTumorDataModule
from ovseg.models import build_model
from ovseg.training.checkpoint_io import WholeCheckpointIO
from ovseg.training.task import SegmentationTask
from support import REPOSITORY, train

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
    "trainer": {"max_epochs": 4, "accelerator": "cpu", "num_sanity_val_steps": 0},
}


@pytest.fixture
def tiny(tmp_path, phantom_root, monkeypatch):
    """A folder to work in, with tiny.yaml."""
    settings = {**SETTINGS, "data": {**SETTINGS["data"], "root": str(phantom_root)}}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(settings))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def weights(path: Path) -> dict[str, torch.Tensor]:
    state = torch.load(path, weights_only=True)["state_dict"]
    return {name: value for name, value in state.items() if name.startswith("network")}


def read_csv(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_run_folder_is_complete(tiny, capsys):
    assert train("--trainer.max_epochs", "2") == 0
    run = tiny / "runs" / "tiny" / "version_0"
    expected = {"config.yaml", "metrics.csv", "checkpoints/best.ckpt", "checkpoints/last.ckpt"}
    expected |= {
        f"{name}.{kind}" for name in ("train_losses", "train_metrics") for kind in ("csv", "png")
    }
    expected |= {
        f"epoch_change_infer/Epoch_{n}{stem}.png"
        for n in (1, 2)
        for stem in ("", "_phantom_17", "_phantom_19")
    }
    expected |= {
        f"evaluation/{name}"
        for name in ("evaluation.csv", "per_image.csv", "summary.json", "cases.png")
    }
    assert expected <= {str(path.relative_to(run)) for path in run.rglob("*")}
    assert [row["epoch"] for row in read_csv(run / "train_losses.csv")] == ["1", "2"]
    assert list(read_csv(run / "train_losses.csv")[0]) == ["epoch", "loss", "val_loss"]
    assert list(read_csv(run / "train_metrics.csv")[0])[:3] == [
        "epoch",
        "dice_coef",
        "val_dice_coef",
    ]
    output = capsys.readouterr()
    assert (
        "Dice per image" in output.out and "evaluation" in output.out and "epoch 2/2" in output.err
    )
    assert np.array(Image.open(run / "epoch_change_infer" / "Epoch_1.png")).shape[2] == 3


def test_every_result_of_a_leaking_split_says_leakage(tiny, phantom_root, capsys):
    shutil.copytree(phantom_root, tiny / "leaking")
    (tiny / "leaking" / "manifest.json").write_text(json.dumps({"leakage": True}))
    assert train("--data.root", "leaking", "--trainer.max_epochs", "1") == 0
    evaluation = tiny / "runs" / "tiny" / "version_0" / "evaluation"
    assert json.loads((evaluation / "summary.json").read_text())["leakage"] is True
    assert read_csv(evaluation / "evaluation.csv")[0]["leakage"] == "True"
    assert "LEAKAGE" in capsys.readouterr().out


def test_second_run_gets_its_own_folder(tiny):
    for _ in range(2):
        assert train("--trainer.max_epochs", "1") == 0
    assert sorted(path.name for path in (tiny / "runs" / "tiny").iterdir()) == [
        "version_0",
        "version_1",
    ]


def test_checkpoint_loads_alone(tiny):
    train("--trainer.max_epochs", "1")
    path = tiny / "runs" / "tiny" / "version_0" / "checkpoints" / "last.ckpt"
    task = SegmentationTask.load_from_checkpoint(path, weights_only=True)
    assert task.hparams.arch == "flexible_unet" and task.hparams.arch_args["num_layers"] == 3


@pytest.mark.parametrize("workers", ["0", "2"])
def test_resume_equals_an_uninterrupted_run(workers, tiny):
    options = ("--data.num_workers", workers)
    assert train(*options) == 0
    assert train("--trainer.max_epochs", "2", *options) == 0
    half = "runs/tiny/version_1/checkpoints/last.ckpt"
    assert train("--ckpt_path", half, *options) == 0
    whole, resumed = (tiny / "runs" / "tiny" / f"version_{n}" for n in (0, 2))
    for name in ("last", "best"):
        first, second = (weights(run / "checkpoints" / f"{name}.ckpt") for run in (whole, resumed))
        assert all(torch.allclose(first[key], second[key], atol=1e-6) for key in first), name
    assert read_csv(whole / "train_losses.csv") == read_csv(resumed / "train_losses.csv")
    rates = [
        torch.load(r / "checkpoints/last.ckpt", weights_only=True)["optimizer_states"]
        for r in (whole, resumed)
    ]
    assert rates[0][0]["param_groups"][0]["lr"] == rates[1][0]["param_groups"][0]["lr"] < 0.003


def test_compiled_training_resumes_from_and_to_plain_checkpoints(tiny, monkeypatch):
    calls, compile_ = [], torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda f, **_: calls.append(f) or compile_(f, backend="aot_eager")
    )
    assert train("--trainer.max_epochs", "1") == 0 and not calls
    first, second = (f"runs/tiny/version_{n}/checkpoints/last.ckpt" for n in range(2))
    assert train("--model.compile", "true", "--ckpt_path", first, "--trainer.max_epochs", "2") == 0
    assert len(calls) == 1 and weights(Path(first)).keys() == weights(Path(second)).keys()
    assert any(
        not torch.equal(weights(Path(first))[k], value)
        for k, value in weights(Path(second)).items()
    )
    assert train("--ckpt_path", second, "--trainer.max_epochs", "3") == 0 and len(calls) == 1


def test_weights_trained_channels_last_are_plain_ones(phantom_root, tmp_path):
    arguments = {"encoder_name": "resnet18", "decoder_args": {"decoder_channels": [16, 8, 8, 4, 4]}}
    task = SegmentationTask("smp", arguments, channels_last=True)
    options = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "max_steps": 1,
    }
    options |= {"limit_val_batches": 0, "enable_model_summary": False, "default_root_dir": tmp_path}
    data = OvarianTumorDataModule(str(phantom_root), image_size=64, num_workers=0)
    Trainer(accelerator="cpu", **options).fit(task, data)
    weight = task.network.state_dict()["network.encoder.layer1.0.conv1.weight"]
    assert weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()
    plain, image = (
        build_model("smp", **arguments).eval(),
        torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8),
    )
    plain.load_state_dict(task.network.state_dict())
    assert torch.allclose(plain(image), task.network.eval()(image), rtol=0, atol=1e-4)


def test_same_seed_gives_the_same_weights(tiny):
    for _ in range(2):
        train("--trainer.max_epochs", "1")
    first, second = (weights(tiny / f"runs/tiny/version_{n}/checkpoints/last.ckpt") for n in (0, 1))
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_break_training_stops_after_the_epoch(tiny, monkeypatch):
    from ovseg.training import callbacks

    on_epoch_end = callbacks.HistoryPlots.on_train_epoch_end

    def ask_to_stop(self, trainer, module):
        on_epoch_end(self, trainer, module)
        (Path(trainer.log_dir) / "break_training").touch()

    monkeypatch.setattr(callbacks.HistoryPlots, "on_train_epoch_end", ask_to_stop)
    assert train() == 0
    run = tiny / "runs" / "tiny" / "version_0"
    assert (
        len(read_csv(run / "train_losses.csv")) == 1
        and (run / "checkpoints" / "last.ckpt").exists()
    )
    assert not (run / "break_training").exists()


def test_divergence_is_told_and_nothing_is_evaluated(tiny, capsys):
    assert train("--model.optimizer_args.lr", "1e30") == 2
    assert "Training diverged: val_loss is nan" in capsys.readouterr().err
    assert not (tiny / "runs" / "tiny" / "version_0" / "evaluation").exists()


def test_a_schedule_that_cannot_act_is_told(tiny, caplog):
    with caplog.at_level("INFO"):
        assert train("--early_stopping.patience", "1", "--trainer.max_epochs", "1") == 0
    assert "Raise early_stopping.patience above 1" in caplog.text


def test_resume_refuses_a_finished_run_and_another_loss(tiny, capsys):
    assert train("--trainer.max_epochs", "1") == 0
    last = ["--ckpt_path", "runs/tiny/version_0/checkpoints/last.ckpt"]
    assert train(*last, "--trainer.max_epochs", "1") == 2
    assert "has done 1 epochs of trainer.max_epochs 1" in capsys.readouterr().err
    assert train(*last, "--model.loss", "dice_loss") == 2
    assert "was trained with model.loss bce_dice_loss" in capsys.readouterr().err
    assert not (tiny / "runs" / "tiny" / "version_1").exists()


def test_sigterm_keeps_a_checkpoint_and_is_no_success(tiny):
    command = [sys.executable, str(REPOSITORY / "scripts" / "train.py"), "--config", "tiny.yaml"]
    process = subprocess.Popen(
        [*command, "--trainer.max_epochs", "1000", "--early_stopping.patience", "999"],
        stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    last = tiny / "runs" / "tiny" / "version_0" / "checkpoints" / "last.ckpt"
    deadline = time.monotonic() + 120
    while not last.exists() and time.monotonic() < deadline:
        time.sleep(0.2)
    process.terminate()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 143 and "Traceback" not in errors
    assert "Go on with --ckpt_path runs" in errors and "stopped by SIGTERM" in errors


def test_ctrl_c_keeps_a_checkpoint(tiny):
    command = [sys.executable, str(REPOSITORY / "scripts" / "train.py"), "--config", "tiny.yaml"]
    process = subprocess.Popen(
        [*command, "--trainer.max_epochs", "1000", "--early_stopping.patience", "999"],
        stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background job ignores Ctrl-C
    )  # fmt: skip
    last = tiny / "runs" / "tiny" / "version_0" / "checkpoints" / "last.ckpt"
    deadline = time.monotonic() + 120
    while not last.exists() and time.monotonic() < deadline:
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert (
        process.returncode == 130
        and "Traceback" not in errors
        and errors.endswith("error: stopped by Ctrl-C\n")
    )
    assert "Stopped in epoch" in errors and "Go on with --ckpt_path runs" in errors
    assert weights(last) and not list(last.parent.glob(".*tmp*"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model.arch", "unet9000"], "Unknown arch 'unet9000'. Choose one of: attention_unet, "),
        (["--model.loss", "hope"], "Unknown loss 'hope'"),
        (["--model.arch_args.depth", "3"], "arch flexible_unet does not take depth"),
        (["--model.colour", "3"], "model.colour|colour"),
        (["--data.image_size", "3"], r"data.image_size is 3"),
        (["--data.image_size", "wide"], "image_size"),
        (["--data.root", "gone"], "There is no dataset folder gone"),
        (["--ckpt_path", "gone.ckpt"], "There is no checkpoint gone.ckpt"),
        (["--config", "gone.yaml"], "gone.yaml"),
        (["--trainer.max_epochs", "0"], "trainer.max_epochs is 0"),
        (["--trainer.limit_train_batches", "0"], "trainer.limit_train_batches is 0"),
        (["--snapshots.num_infer_images", "-1"], "num_infer_images is -1"),
        (["--trainer.accelerator", "cuda"], "CUDA|cuda|accelerator"),
        (["--runs_dir", "tiny.yaml"], "Cannot write|is not a folder"),
    ],
)
def test_mistake_is_one_line_and_leaves_nothing(tiny, capsys, arguments, message):
    import re

    assert train(*arguments) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert error[-1].startswith("error: ") and re.search(message, error[-1])
    assert not (tiny / "runs").exists()


def test_checkpoint_of_another_architecture_is_an_error(tiny, capsys):
    train("--trainer.max_epochs", "1")
    path = "runs/tiny/version_0/checkpoints/last.ckpt"
    assert train("--ckpt_path", path, "--model.arch_args.num_layers", "4") == 2
    assert "was trained with model.arch_args" in capsys.readouterr().err
    assert train("--ckpt_path", path, "--model.arch", "smp", "--model.arch_args", "{}") == 2
    assert "was trained with model.arch flexible_unet" in capsys.readouterr().err
    (tiny / "cut.ckpt").write_bytes((tiny / path).read_bytes()[:3000])
    assert train("--ckpt_path", "cut.ckpt") == 2
    assert "cut.ckpt is not a whole checkpoint" in capsys.readouterr().err


def test_no_pretrained_name_stays_in_a_checkpoint():
    checkpoint = {
        "hyper_parameters": {
            "arch_args": {"encoder_name": "resnet18", "encoder_weights": "imagenet"}
        }
    }
    SegmentationTask(arch_args={"base_filters": 2, "num_layers": 2}).on_save_checkpoint(checkpoint)
    assert checkpoint["hyper_parameters"]["arch_args"] == {
        "encoder_name": "resnet18",
        "encoder_weights": None,
    }


def test_print_config_shows_every_default(tiny, capsys):
    with pytest.raises(SystemExit):
        train("--print_config")
    config = yaml.safe_load(capsys.readouterr().out)
    assert config["data"]["mask_threshold"] == 127 and config["model"]["loss"] == "bce_dice_loss"


CONFIGS = sorted((REPOSITORY / "configs").glob("*.yaml"))
SHRUNK = {
    "flexible_unet": ["--model.arch_args.base_filters", "1", "--model.arch_args.num_layers", "4"],
    "attention_unet": ["--model.arch_args.base_filters", "1"],
    "multires_unet": ["--model.arch_args.base_filters", "4"],
    "unet3plus": ["--model.arch_args.base_filters", "2"],
    "swin_unet": ["--model.arch_args.filter_num_begin", "8", "--model.arch_args.image_size", "64"],
    "efficient_unet": [],
    "deeplabv3plus": [],
    "smp": [
        "--model.arch_args.encoder_name",
        "resnet18",
        "--model.arch_args.encoder_weights",
        "null",
    ],
}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_trains(tiny, phantom_root, path):
    (tiny / "tiny.yaml").write_text(path.read_text())
    config = yaml.safe_load(path.read_text())
    arch = config["model"]["arch"]
    small = [
        "--data.root",
        str(phantom_root),
        "--data.image_size",
        "64",
        "--data.num_workers",
        "0",
        "--data.batch_size",
        "2",
    ]
    if "classes" in config["data"]:
        small += ["--data.classes", "5"]  # phantoms have four categories
    assert (
        train(*small, *SHRUNK[arch], "--trainer.fast_dev_run", "1", "--trainer.accelerator", "cpu")
        == 0
    )


VALIDATE = """
import sys, json
from pytorch_lightning import Trainer
from ovseg.data.datamodule import OvarianTumorDataModule
from ovseg.training.task import SegmentationTask
path, root, devices = sys.argv[1], sys.argv[2], int(sys.argv[3])
if __name__ == "__main__":
    task = SegmentationTask.load_from_checkpoint(path, weights_only=True)
    data = OvarianTumorDataModule(root, image_size=32, batch_size=2, num_workers=0, classes=5)
    trainer = Trainer(accelerator="cpu", devices=devices, strategy="ddp" if devices > 1 else "auto", logger=False,
                      enable_progress_bar=False)
    scores = trainer.test(task, data, verbose=False)[0]
    if trainer.is_global_zero:
        print("SCORES", json.dumps(scores))
"""


@pytest.mark.timeout(300)
def test_two_processes_train_and_score_as_one(tiny, phantom_root):
    command = [sys.executable, str(REPOSITORY / "scripts" / "train.py"), "--config", "tiny.yaml"]
    ddp = ["--trainer.devices", "2", "--trainer.strategy", "ddp", "--trainer.max_epochs", "1"]
    ddp += [
        "--data.classes",
        "5",
        "--model.loss",
        "ce_dice_loss",
    ]  # has the scores of one class too
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([*command, *ddp], check=True, env=environment, capture_output=True, timeout=200)
    runs = list((tiny / "runs" / "tiny").iterdir())
    assert [run.name for run in runs] == ["version_0"] and len(
        read_csv(runs[0] / "train_losses.csv")
    ) == 1
    (tiny / "validate.py").write_text(VALIDATE)
    scores = []
    for devices in "12":
        arguments = [
            "validate.py",
            str(runs[0] / "checkpoints" / "last.ckpt"),
            str(phantom_root),
            devices,
        ]
        result = subprocess.run(
            [sys.executable, *arguments],
            check=True,
            env=environment,
            capture_output=True,
            text=True,
        )
        line = next(line for line in result.stdout.splitlines() if line.startswith("SCORES"))
        scores.append(json.loads(line.removeprefix("SCORES")))
    assert scores[0] == pytest.approx(scores[1], abs=1e-6, nan_ok=True)


def test_validation_score_is_the_evaluated_one(tiny, phantom_root):
    """The number shown in training is the number reported, on the same split."""
    train("--trainer.max_epochs", "1")
    run = tiny / "runs" / "tiny" / "version_0"
    assert main(["evaluate", "--run", str(run), "--split", "valid", "--device", "cpu"]) == 0
    summary = json.loads((run / "evaluation_valid" / "summary.json").read_text())
    shown = read_csv(run / "train_metrics.csv")[-1]
    assert summary["scores"]["dice"]["mean"] == pytest.approx(
        float(shown["val_dice"]), abs=1e-6, nan_ok=True
    )
    assert summary["scores"]["iou_pooled"] == pytest.approx(
        float(shown["val_iou_pooled"]), abs=1e-6
    )


def test_library_use_without_the_command_line(phantom_root, tmp_path):
    from pytorch_lightning import Trainer

    data = OvarianTumorDataModule(str(phantom_root), image_size=32, num_workers=0)
    task = SegmentationTask(
        arch_args={"base_filters": 2, "num_layers": 3}, optimizer_args={"lr": 1e-3}
    )
    options = {
        "accelerator": "cpu",
        "enable_progress_bar": False,
        "logger": False,
        "default_root_dir": tmp_path,
    }
    trainer = Trainer(fast_dev_run=True, **options)
    trainer.fit(task, data)
    assert torch.isfinite(trainer.callback_metrics["val_loss"])


@pytest.mark.parametrize("key", ["arch_args", "optimizer_args", "scheduler_args"])
def test_a_class_path_inside_arguments_is_not_called(key, tiny):
    code = {"class_path": "logging.FileHandler", "init_args": {"filename": str(tiny / "called")}}
    settings = yaml.safe_load((tiny / "tiny.yaml").read_text())
    settings["model"][key] = {**settings["model"][key], "extra": code}
    (tiny / "tiny.yaml").write_text(yaml.safe_dump(settings))
    assert train() == 2
    settings["model"][key] = code
    (tiny / "tiny.yaml").write_text(yaml.safe_dump(settings))
    assert train() == 2
    assert not (tiny / "called").exists()


@pytest.mark.parametrize("section", ["hyper_parameters", "datamodule_hyper_parameters"])
def test_a_checkpoint_that_names_an_instantiator_is_refused(section, tiny):
    assert train("--trainer.max_epochs", "1") == 0
    path = tiny / "runs/tiny/version_0/checkpoints/last.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    checkpoint[section]["_instantiator"] = "pytorch_lightning.cli.instantiate_module"
    torch.save(checkpoint, path)
    with pytest.raises(InputError, match="never writes: _instantiator"):
        read_members(path)


def test_train_writes_its_checkpoints_beside_their_place(tiny, monkeypatch):
    written = []
    save = WholeCheckpointIO.save_checkpoint

    def recorded(self, checkpoint, path, storage_options=None):
        written.append(Path(path).name)
        save(self, checkpoint, path, storage_options)

    monkeypatch.setattr(WholeCheckpointIO, "save_checkpoint", recorded)
    assert train("--trainer.max_epochs", "1") == 0
    assert sorted(written) == ["best.ckpt", "last.ckpt"]
