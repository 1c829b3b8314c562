"""Averaged weights: what uses them, what a checkpoint holds, and an exact resume."""

from pathlib import Path

import pytest
import torch
import yaml
from pytorch_lightning import Callback, Trainer

from ovseg.core.checkpoints import read_checkpoint
from ovseg.core.errors import InputError
from ovseg.data.datamodule import OvarianTumorDataModule
from ovseg.training import callbacks
from ovseg.training.callbacks import BreakTraining, EpochSnapshots
from ovseg.training.ema import AveragedWeights, averaged, decay_of
from ovseg.training.task import SegmentationTask

NETWORK = {
    "base_filters": 2,
    "base_kernel": 3,
    "num_layers": 3,
    "dilation": 1,
    "normalization": True,
}
TRAINER = {"max_epochs": 4, "accelerator": "cpu", "num_sanity_val_steps": 0}


@pytest.fixture
def tiny(tmp_path, phantom_root, monkeypatch):
    """A folder with tiny.yaml: average, cosine, an encoder that is frozen, then slower."""
    model = {
        "arch_args": NETWORK,
        "optimizer": "adamw",
        "optimizer_args": {"lr": 0.01},
        "scheduler": "cosine",
    }
    model |= {
        "scheduler_args": {"warmup_epochs": 1},
        "encoder_lr_factor": 0.5,
        "freeze_encoder_epochs": 1,
    }
    data = {
        "root": str(phantom_root),
        "image_size": 32,
        "batch_size": 4,
        "num_workers": 0,
        "augmentation": "standard",
    }
    settings = {"model": model, "data": data, "trainer": TRAINER, "ema": {"decay": 0.9}}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(settings))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def network_of(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {
        name.removeprefix("network."): value
        for name, value in state.items()
        if name.startswith("network.")
    }


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(
        torch.allclose(first[n], second[n], atol=1e-6) for n in first
    )


def fit(root: Path, folder: Path, *more: Callback, **options) -> tuple[Trainer, SegmentationTask]:
    data = OvarianTumorDataModule(str(root), image_size=32, batch_size=4, num_workers=0)
    task = SegmentationTask(arch_args=NETWORK, optimizer_args={"lr": 0.01})
    quiet = {
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "logger": False,
        "default_root_dir": folder,
    }
    options = {"enable_checkpointing": False, **quiet, **TRAINER, "max_epochs": 1, **options}
    trainer = Trainer(callbacks=[AveragedWeights(0.9), *more], **options)
    trainer.fit(task, data)
    return trainer, task


def test_average_is_exponential_after_a_warmup():
    """Decay 0.1, 2 / 11, 3 / 12 for the first steps, 0.5 from the eighth on."""
    ema, mean, count = AveragedWeights(0.5), [torch.zeros(1), torch.tensor(0)], 1
    expected = 0.0
    for value in (1.0, 2.0, 4.0):
        ema._average(mean, [torch.tensor([value]), torch.tensor(count)], torch.tensor(count))
        decay = (1 + count) / (10 + count)
        expected = decay * expected + (1 - decay) * value
        assert mean[0].item() == pytest.approx(expected) and mean[1].item() == count
        count += 1
    ema._average(mean, [torch.zeros(1), torch.tensor(100)], torch.tensor(100))
    assert mean[0].item() == pytest.approx(expected / 2)


@pytest.mark.parametrize("decay", [0.0, 1.0, -0.5])
def test_decay_out_of_range_is_an_error(decay):
    with pytest.raises(InputError, match=f"ema.decay is {decay}, expected above 0 and below 1"):
        AveragedWeights(decay)


class Follow(Callback):
    """Averages beside the callback, and looks which weights are in use where."""

    def __init__(self):
        self.mean, self.count, self.seen = None, 0, {}

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        now = {name: value.clone() for name, value in pl_module.network.state_dict().items()}
        decay = min(0.9, (1 + self.count) / (10 + self.count)) if self.count else 0.0
        self.mean = {
            n: decay * self.mean[n] + (1 - decay) * v if decay and v.is_floating_point() else v
            for n, v in now.items()
        }
        self.count, self.raw = self.count + 1, now

    def look(self, where, pl_module):
        state = pl_module.network.state_dict()
        self.seen[where] = (
            "mean" if same(state, self.mean) else "raw" if same(state, self.raw) else "neither"
        )

    def on_validation_batch_end(self, trainer, pl_module, *_):
        self.look("validation", pl_module)

    def on_train_epoch_end(self, trainer, pl_module):
        self.look("epoch end", pl_module)

    def on_train_end(self, trainer, pl_module):
        self.look("end", pl_module)

    def on_test_batch_end(self, trainer, pl_module, *_):
        self.look("test", pl_module)


def test_validation_snapshots_and_test_use_the_average(phantom_root, tmp_path, monkeypatch):
    follow = Follow()
    forward = SegmentationTask.forward

    def watch_snapshots(task, image):
        # Snapshots are made outside validation and training steps, in evaluation mode.
        if not task.training and task.trainer.state.stage == "train":
            follow.look("snapshot", task)
        return forward(task, image)

    monkeypatch.setattr(SegmentationTask, "forward", watch_snapshots)
    monkeypatch.chdir(tmp_path)
    trainer, task = fit(
        phantom_root, tmp_path, follow, EpochSnapshots(1), enable_checkpointing=True
    )
    trainer.test(task, trainer.datamodule, verbose=False)
    assert not same(follow.mean, follow.raw)
    places = {
        "validation": "mean",
        "snapshot": "mean",
        "epoch end": "raw",
        "end": "mean",
        "test": "mean",
    }
    assert follow.seen == places


def test_checkpoint_holds_and_loads_the_average(tiny, train):
    assert train("--trainer.max_epochs", "2") == 0
    run = tiny / "runs" / "tiny" / "version_0"
    for name in ("best", "last"):
        path = run / "checkpoints" / f"{name}.ckpt"
        checkpoint = read_checkpoint(path)
        mean, raw = (
            network_of(checkpoint["state_dict"]),
            network_of(checkpoint["current_model_state"]),
        )
        assert not same(mean, raw) and decay_of(checkpoint) == 0.9
        task = SegmentationTask.load_from_checkpoint(path, weights_only=True)
        assert same(task.network.state_dict(), mean)
    assert (run / "evaluation" / "summary.json").is_file()
    assert yaml.safe_load((run / "config.yaml").read_text())["ema"] == {"decay": 0.9}


def test_resume_with_average_cosine_and_frozen_encoder_equals_an_uninterrupted_run(
    tiny, monkeypatch, train
):
    assert train() == 0
    with monkeypatch.context() as patch:
        on_epoch_end = callbacks.HistoryPlots.on_train_epoch_end

        def ask_to_stop(self, trainer, module):
            on_epoch_end(self, trainer, module)
            if trainer.current_epoch == 1:
                (Path(trainer.log_dir) / "break_training").touch()

        patch.setattr(callbacks.HistoryPlots, "on_train_epoch_end", ask_to_stop)
        assert train() == 0
    half = "runs/tiny/version_1/checkpoints/last.ckpt"
    assert train("--ckpt_path", half) == 0
    whole, resumed = (tiny / "runs" / "tiny" / f"version_{n}" / "checkpoints" for n in (0, 2))
    for name in ("last.ckpt", "best.ckpt"):
        first, second = (read_checkpoint(folder / name) for folder in (whole, resumed))
        for key in ("state_dict", "current_model_state"):
            assert same(network_of(first[key]), network_of(second[key])), (name, key)
    assert first["averaging_state"] == second["averaging_state"]
    groups = [
        read_checkpoint(folder / "last.ckpt")["optimizer_states"][0]["param_groups"]
        for folder in (whole, resumed)
    ]
    assert [group["lr"] for group in groups[0]] == pytest.approx(
        [group["lr"] for group in groups[1]]
    )
    assert max(group["lr"] for group in groups[0]) < 0.002  # the cosine's end


def test_resume_refuses_another_average_or_length(tiny, capsys, train):
    assert train("--trainer.max_epochs", "2", "--trainer.limit_train_batches", "2") == 0
    last = [
        "--ckpt_path",
        "runs/tiny/version_0/checkpoints/last.ckpt",
        "--trainer.limit_train_batches",
        "2",
    ]
    assert train(*last, "--ema.decay", "0") == 2
    assert (
        "was trained with ema.decay 0.9, but the configuration has 0.0" in capsys.readouterr().err
    )
    assert train(*last, "--model.freeze_encoder_epochs", "0") == 2
    assert "was trained with model.freeze_encoder_epochs 1" in capsys.readouterr().err
    assert train(*last) == 2
    assert (
        "schedule was made for 4 optimiser steps, but this training has 8"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ema.decay", "1.5"], "error: ema.decay is 1.5"),
        (
            ["--model.freeze_encoder_epochs", "4"],
            "freeze_encoder_epochs is 4 of trainer.max_epochs 4, so the encoder",
        ),
        (
            ["--model.scheduler_args.warmup_epochs", "4"],
            "warmup_epochs is 4 of trainer.max_epochs 4, so the rate",
        ),
        (
            ["--model.monitor", "val_dice_categories"],
            "model.monitor is val_dice_categories, which is logged only where",
        ),
        (["--model.monitor", "luck"], "Unknown monitor 'luck'"),
    ],
)
def test_mistake_is_one_line_and_leaves_nothing(tiny, capsys, arguments, message, train):
    assert train(*arguments) == 2
    assert message in capsys.readouterr().err and not (tiny / "runs").exists()


def test_broken_off_validation_gives_the_weights_back(phantom_root, tmp_path):
    class Interrupt(Callback):
        def on_validation_batch_end(self, *_):
            raise KeyboardInterrupt

        def on_exception(self, trainer, pl_module, exception):
            self.state = {
                name: value.clone() for name, value in pl_module.network.state_dict().items()
            }

    follow, interrupt = Follow(), Interrupt()
    with pytest.raises(SystemExit):
        fit(phantom_root, tmp_path, follow, interrupt)
    assert same(interrupt.state, follow.raw) and not same(follow.raw, follow.mean)


def test_without_an_average_nothing_is_swapped(phantom_root, tmp_path):
    trainer = Trainer(
        logger=False, callbacks=[BreakTraining()], accelerator="cpu", default_root_dir=tmp_path
    )
    task = SegmentationTask(arch_args=NETWORK)
    before = {name: value.clone() for name, value in task.state_dict().items()}
    with averaged(trainer, task):
        assert same(task.state_dict(), before)
    assert decay_of({}) == 0
