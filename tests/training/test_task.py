"""How the task trains: frozen encoder, schedules, clipping, precision, accumulation."""

import os
import subprocess
import sys

import pytest
import torch
from pytorch_lightning import Callback, Trainer

from ovseg.core.errors import InputError
from ovseg.data.datamodule import OvarianTumorDataModule
from ovseg.training.task import SegmentationTask, load_task

NETWORK = {
    "base_filters": 2,
    "base_kernel": 3,
    "num_layers": 3,
    "dilation": 1,
    "normalization": True,
}


@pytest.fixture
def fit(phantom_root, tmp_path):
    """Train a small network on phantoms of 32 x 32, 14 images in batches of 4."""

    def run(*callbacks: Callback, trainer: dict | None = None, **settings) -> SegmentationTask:
        data = OvarianTumorDataModule(str(phantom_root), image_size=32, batch_size=4, num_workers=0)
        task = SegmentationTask(
            **{"arch_args": NETWORK, "optimizer_args": {"lr": 0.01}, **settings}
        )
        options = {
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "logger": False,
            "max_epochs": 2,
        }
        options |= {
            "enable_checkpointing": False,
            "num_sanity_val_steps": 0,
            "default_root_dir": tmp_path,
        }
        Trainer(accelerator="cpu", callbacks=list(callbacks), **{**options, **(trainer or {})}).fit(
            task, data
        )
        return task

    return run


class Record(Callback):
    """Rates and gradients at every optimiser step, and weights at every epoch's end."""

    def __init__(self):
        self.rates, self.norms, self.largest, self.states = [], [], [], []

    def on_train_start(self, trainer, pl_module):
        self.states.append({n: v.clone() for n, v in pl_module.network.state_dict().items()})

    def on_before_zero_grad(self, trainer, pl_module, optimizer):
        gradients = [p.grad for p in pl_module.network.parameters() if p.grad is not None]
        if gradients:
            self.norms.append(torch.stack([g.norm() for g in gradients]).norm().item())
            self.largest.append(max(g.abs().max().item() for g in gradients))

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.rates.append([group["lr"] for group in trainer.optimizers[0].param_groups])

    def on_train_epoch_end(self, trainer, pl_module):
        self.states.append({n: v.clone() for n, v in pl_module.network.state_dict().items()})


@pytest.mark.parametrize("optimizer", ["adamw", "keras_adam"])
def test_frozen_encoder_rests_and_then_trains(fit, optimizer):
    record = Record()
    fit(record, optimizer=optimizer, freeze_encoder_epochs=1)
    start, first, second = record.states
    encoder = [name for name in start if name.startswith("encoder.")]
    assert any("running_mean" in name for name in encoder)
    assert all(torch.equal(start[name], first[name]) for name in encoder)
    assert not any(torch.equal(first[name], second[name]) for name in encoder)
    rest = [name for name in start if not name.startswith(("encoder.", "scale."))]
    assert not any(torch.equal(start[name], first[name]) for name in rest)


def test_frozen_encoder_does_not_count_in_the_clipped_norm(fit):
    record = Record()
    clip = {"gradient_clip_val": 1e-3, "max_epochs": 1}
    fit(record, trainer=clip, freeze_encoder_epochs=1)
    assert record.norms == pytest.approx([1e-3] * len(record.norms), rel=0.01)


@pytest.mark.parametrize("algorithm", ["value", "norm"])
def test_clipping_holds_over_all_groups(fit, algorithm):
    record = Record()
    clip = {"gradient_clip_val": 1e-3, "gradient_clip_algorithm": algorithm, "max_epochs": 1}
    fit(record, trainer=clip, optimizer="adamw", encoder_lr_factor=0.1)
    assert len(record.norms) == 3  # of 4 steps, looked at before the next one
    if algorithm == "norm":
        assert record.norms == pytest.approx([1e-3] * 3, rel=0.01)
    else:
        assert record.largest == pytest.approx([1e-3] * 3) and min(record.norms) > 2e-3


@pytest.mark.parametrize("scheduler", ["cosine", "one_cycle"])
def test_schedule_counts_optimiser_steps(fit, scheduler):
    """14 images are 4 batches of 4, 2 optimiser steps where 2 are accumulated, 6 in 3 epochs."""
    record = Record()
    task = fit(record, trainer={"accumulate_grad_batches": 2, "max_epochs": 3}, scheduler=scheduler)
    rates = [rate for (rate,) in record.rates]
    assert len(rates) == 12 and rates[0::2] == rates[1::2] and len(set(rates)) == 6
    assert task.lr_schedulers().last_epoch == 6 and task.lr_schedulers().total_steps == 6
    if scheduler == "cosine":
        assert rates[0] == 0.01 and rates[6] == pytest.approx(0.005)


def test_cosine_needs_an_end(fit):
    with pytest.raises(
        InputError, match="The schedule cosine needs an end: set trainer.max_epochs"
    ):
        fit(scheduler="cosine", trainer={"max_epochs": -1, "max_time": {"seconds": 1}})
    record = Record()
    fit(record, scheduler="cosine", trainer={"max_epochs": -1, "max_steps": 4})
    assert len(record.rates) == 4 and record.rates[2] == [pytest.approx(0.005)]


def test_warmup_longer_than_the_training_is_an_error(fit):
    with pytest.raises(InputError, match="warmup_epochs 2 is not inside the 2 epochs"):
        fit(scheduler="cosine", scheduler_args={"warmup_epochs": 2})


@pytest.mark.parametrize("monitor", ["val_dice_coef", "val_loss"])
def test_plateau_watches_the_monitored_value(fit, monitor):
    """No gain of 10 is ever made, in either direction."""
    arguments = {"patience": 0, "threshold": 10.0, "threshold_mode": "abs", "factor": 0.5}
    task = fit(
        scheduler="plateau", scheduler_args=arguments, monitor=monitor, trainer={"max_epochs": 3}
    )
    schedule = task.lr_schedulers()
    assert schedule.mode == ("min" if monitor == "val_loss" else "max")
    assert task.optimizers().param_groups[0]["lr"] == pytest.approx(0.0025)


@pytest.mark.parametrize("loss", ["bce_dice_loss", "binary_crossentropy"])
def test_bfloat16_trains_with_losses_in_float32(fit, loss, monkeypatch):
    logits = set()
    losses = set()
    forward = SegmentationTask.forward
    training_step = SegmentationTask.training_step

    def watch_forward(self, image):
        found = forward(self, image)
        logits.add(found.dtype)
        return found

    def watch_step(self, batch, index):
        loss = training_step(self, batch, index)
        losses.add(loss.dtype)
        return loss

    monkeypatch.setattr(SegmentationTask, "forward", watch_forward)
    monkeypatch.setattr(SegmentationTask, "training_step", watch_step)
    task = fit(
        loss=loss, trainer={"precision": "bf16-mixed", "max_epochs": 1, "gradient_clip_val": 1.0}
    )
    assert logits == {torch.bfloat16}
    assert losses == {torch.float32}
    assert all(p.dtype == torch.float32 and torch.isfinite(p).all() for p in task.parameters())


def test_settings_that_make_no_sense_are_errors():
    with pytest.raises(InputError, match="model.freeze_encoder_epochs is -1, expected 0 or more"):
        SegmentationTask(arch_args=NETWORK, freeze_encoder_epochs=-1)
    with pytest.raises(InputError, match="model.encoder_lr_factor is -1, expected above 0"):
        SegmentationTask(arch_args=NETWORK, encoder_lr_factor=-1)
    with pytest.raises(InputError, match="scheduler cosine does not take restarts"):
        SegmentationTask(arch_args=NETWORK, scheduler="cosine", scheduler_args={"restarts": 2})


def test_weights_of_another_network_are_named_the_first_five(make_run, tmp_path):
    path = make_run(tmp_path) / "checkpoints" / "last.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    tensors = checkpoint["state_dict"]
    checkpoint["state_dict"] = {f"network.x{name}": value for name, value in tensors.items()}
    torch.save(checkpoint, path)
    with pytest.raises(InputError) as error:
        load_task(path)
    text = str(error.value)
    assert text.startswith(f"{path} holds other weights than its network has: network.")
    assert text.count("is missing") == 5
    assert f"and {2 * len(tensors) - 5} more." in text


DDP = """
import sys
import torch
from pytorch_lightning import Trainer
from ovseg.training.ema import AveragedWeights
from ovseg.data.datamodule import OvarianTumorDataModule
from ovseg.training.task import SegmentationTask
if __name__ == "__main__":
    network = {"base_filters": 2, "base_kernel": 3, "num_layers": 3, "dilation": 1}
    data = OvarianTumorDataModule(sys.argv[1], image_size=32, batch_size=4, num_workers=0)
    torch.manual_seed(0)
    task = SegmentationTask(
        arch_args=network,
        freeze_encoder_epochs=1,
        optimizer_args={"lr": 0.01},
        scheduler="cosine",
    )
    start = [p.clone() for p in task.network.encoder.parameters()]
    trainer = Trainer(
        accelerator="cpu",
        devices=2,
        strategy="ddp",
        logger=False,
        max_epochs=2,
        enable_progress_bar=False,
        num_sanity_val_steps=0,
        enable_checkpointing=False,
        callbacks=[AveragedWeights(0.9)],
    )
    trainer.fit(task, data)
    # 14 images, two processes, batches of 4
    assert trainer.global_step == task.lr_schedulers().total_steps == 4
    for now, before in zip(task.network.encoder.parameters(), start):
        assert (now - before).abs().max() > 1e-5
    weights = torch.cat([p.detach().flatten() for p in task.parameters()])
    gathered = trainer.strategy.all_gather(weights)
    assert gathered.shape[0] == 2 and torch.equal(gathered[0], gathered[1])
    print("IN STEP")
"""


def test_frozen_encoder_keeps_two_processes_in_step(phantom_root, tmp_path):
    (tmp_path / "ddp.py").write_text(DDP)
    command = [sys.executable, "ddp.py", str(phantom_root)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200
    )
    assert result.returncode == 0, result.stderr[-2000:]
    assert "IN STEP" in result.stdout
