"""Train the flexible UNet in TensorFlow and in ovseg, from the same weights on the same batches."""

import math
import os
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure

from ovseg.baseline.keras_settings import keras_unet_arguments, require_tensorflow
from ovseg.baseline.keras_weights import load_keras_weights
from ovseg.core.console import progress_bar
from ovseg.core.errors import InputError
from ovseg.core.files import atomic_dir, write_json
from ovseg.core.plots import save_figure
from ovseg.core.processes import peak_memory, run_alone
from ovseg.core.versions import installed_versions
from ovseg.data.datamodule import OvarianTumorDataModule
from ovseg.metrics import dice_coef
from ovseg.models import build_model
from ovseg.training.losses import build_loss
from ovseg.training.optim import KerasAdam

WANTED = {"arch": "flexible_unet", "loss": "bce_dice_loss", "optimizer": "keras_adam"}
WARMUP_STEPS = 2  # left out of the seconds a step: both tools allocate memory in them
TEST_BATCH_SIZE = 4  # as in the baseline's evaluation
NO_CLIPPING = 1e9

Batch = tuple[np.ndarray, np.ndarray]  # images uint8 (N, H, W, 3), masks 0 or 1 (N, H, W, 1)


@dataclass(frozen=True)
class Settings:
    """What both tools train.

    Attributes:
        network: arguments of the flexible UNet that both tools have.
        data: the data module's arguments.
        optimizer: `lr`, `eps` and `clip_value`.
        steps: training steps.
        epochs: passes over the training split, or None where steps were asked for.
        threads: CPU threads.
        steps_per_epoch: batches in the training split.
    """

    network: dict[str, Any]
    data: dict[str, Any]
    optimizer: dict[str, float]
    steps: int
    epochs: int | None
    threads: int
    steps_per_epoch: int = 0

    @property
    def batch_size(self) -> int:
        return self.data.get("batch_size", 2)  # the data module's default

    @property
    def keras_network(self) -> dict[str, Any]:
        """Arguments of `ovseg.baseline.keras_unet.build_keras_unet`."""
        return {**self.network, "image_size": self.data["image_size"]}


@dataclass(frozen=True)
class Result:
    """What one tool measured.

    Attributes:
        scores: loss and dice_coef of each training step.
        seconds: of each training step.
        peak_mib: most memory of the process in training, MiB.
        test: loss and dice_coef of the test split.
    """

    scores: list[tuple[float, float]]
    seconds: list[float]
    peak_mib: float
    test: tuple[float, float]


class Training(Protocol):
    """A network in training with one of the tools."""

    def step(self, image: np.ndarray, mask: np.ndarray) -> tuple[float, float]:
        """Train on one batch; loss and dice_coef before the step."""

    def evaluate(self, batches: list[Batch]) -> tuple[float, float]:
        """Mean loss over images and mean dice_coef over batches."""


def compare_training(
    config: dict[str, Any],
    output: Path,
    steps: int = 200,
    image_size: int = 128,
    overwrite: bool = False,
    epochs: int | None = None,
) -> pd.DataFrame:
    """Train in TensorFlow and in ovseg from the same weights on the same batches, without dropout.

    Each tool runs in its own process, one after the other, on the same number of threads. Writes
    `steps.csv`, `epochs.csv`, `comparison.csv`, `comparison.json` and `comparison.png`.

    Args:
        config: `model` and `data` as in `configs/unet.yaml`; loss `bce_dice_loss`, optimiser
            `keras_adam`.
        output: folder to make.
        steps: training steps; the training images are used in order, again and again.
        image_size: side of the squares, pixels; a multiple of 2**(num_layers - 1).
        overwrite: replace an earlier comparison.
        epochs: train on the whole training split so many times, in place of `steps`.

    Returns:
        A row for TensorFlow and one for ovseg: last loss, test loss, test dice_coef, seconds a step
        (median without the first two), images a second, peak memory.

    Raises:
        InputError: another network, loss or optimiser, a size that Keras cannot halve often enough,
            or no TensorFlow.
    """
    settings = _read_settings(config, steps, image_size, epochs)
    require_tensorflow()
    with (
        atomic_dir(output, overwrite, marker="comparison.json") as folder,
        tempfile.TemporaryDirectory() as scratch,
    ):
        weights = Path(scratch) / "initial.weights.h5"
        data = Path(scratch) / "data.npz"
        settings = _save_batches(settings, data)
        run_alone(_draw_weights, settings, weights)
        results = {
            "TensorFlow": run_alone(_train_in_keras, settings, weights, data),
            "ovseg": run_alone(_train_in_torch, settings, weights, data),
        }
        table = _tabulate(results, settings)
        _write(folder, results, table, settings)
    return table


def _read_settings(
    config: dict[str, Any], steps: int, image_size: int, epochs: int | None
) -> Settings:
    model = config["model"]
    for name, value in WANTED.items():
        if model.get(name) != value:
            raise InputError(
                f"compare_baseline needs model.{name}: {value}, found {model.get(name)!r}. "
                "Use configs/unet.yaml."
            )
    if steps <= WARMUP_STEPS:
        raise InputError(f"--steps is {steps}, expected at least {WARMUP_STEPS + 1}.")
    if epochs is not None and epochs < 1:
        raise InputError(f"--epochs is {epochs}, expected at least 1.")

    network = keras_unet_arguments(model.get("arch_args"), image_size)
    del network["image_size"]
    optimizer_args = model.get("optimizer_args") or {}
    trainer = config.get("trainer") or {}
    return Settings(
        network=network,
        data={**config["data"], "image_size": image_size},
        optimizer={
            "lr": optimizer_args.get("lr", 1e-3),
            "eps": optimizer_args.get("eps", 1e-7),
            "clip_value": trainer.get("gradient_clip_val") or NO_CLIPPING,
        },
        steps=steps,
        epochs=epochs,
        threads=torch.get_num_threads(),
    )


def _save_batches(settings: Settings, path: Path) -> Settings:
    """Save the training images that the steps need and the test split, both in order.

    Returns:
        The settings with the numbers of steps that follow from the dataset.
    """
    options = {"augmentation": "none", "shuffle": False, "num_workers": 0}
    data = OvarianTumorDataModule(**{**settings.data, **options})
    data.verify(("train", "test"))

    steps_per_epoch = math.ceil(len(data.pairs("train")) / settings.batch_size)
    steps = settings.steps
    if settings.epochs is not None:
        steps = settings.epochs * steps_per_epoch
    if steps <= WARMUP_STEPS:
        raise InputError(
            f"--epochs {settings.epochs} is {steps} steps on {data.root}, "
            f"expected at least {WARMUP_STEPS + 1}. Raise --epochs."
        )
    settings = replace(settings, steps=steps, steps_per_epoch=steps_per_epoch)

    train_image, train_mask = _read_split(data, "train", steps * settings.batch_size)
    test_image, test_mask = _read_split(data, "test", len(data.pairs("test")))
    np.savez(
        path,
        train_image=train_image,
        train_mask=train_mask,
        test_image=test_image,
        test_mask=test_mask,
    )
    return settings


def _read_split(data: OvarianTumorDataModule, split: str, count: int) -> Batch:
    """The first `count` images and masks of a split as one batch, channels last."""
    dataset = data.dataset(split)
    numbers = range(min(count, len(dataset)))
    items = [dataset[number] for number in progress_bar(numbers, f"Reading {split}")]
    image = torch.stack([item["image"] for item in items])
    mask = torch.stack([item["mask"] for item in items])
    return image.permute(0, 2, 3, 1).numpy(), mask.permute(0, 2, 3, 1).numpy()


def _load_batches(path: Path, split: str, size: int) -> list[Batch]:
    """The batches of a split that `_save_batches` has saved."""
    with np.load(path) as arrays:
        image = arrays[f"{split}_image"]
        mask = arrays[f"{split}_mask"]
    batches = []
    for start in range(0, len(image), size):
        stop = start + size
        batches.append((image[start:stop], mask[start:stop]))
    return batches


def _draw_weights(settings: Settings, weights: Path) -> None:
    from ovseg.baseline.keras_unet import save_initial_weights

    seed = settings.data.get("seed", 42)  # the data module's default
    save_initial_weights(settings.keras_network, weights, seed, settings.threads)


def _train_in_keras(settings: Settings, weights: Path, data: Path) -> Result:
    from ovseg.baseline.keras_unet import KerasTraining

    training = KerasTraining(settings.keras_network, weights, settings.optimizer, settings.threads)
    return _train("TensorFlow", training, settings, data)


def _train_in_torch(settings: Settings, weights: Path, data: Path) -> Result:
    torch.set_num_threads(settings.threads)
    return _train("ovseg", TorchTraining(settings, weights), settings, data)


def _train(name: str, training: Training, settings: Settings, data: Path) -> Result:
    """Train on all steps, then evaluate on the test split."""
    batches = _load_batches(data, "train", settings.batch_size)
    scores = []
    seconds = []
    for step in progress_bar(range(settings.steps), name):
        image, mask = batches[step % len(batches)]
        began = time.perf_counter()
        scores.append(training.step(image, mask))
        seconds.append(time.perf_counter() - began)
    peak_mib = peak_memory()
    test = training.evaluate(_load_batches(data, "test", TEST_BATCH_SIZE))
    return Result(scores, seconds, peak_mib, test)


class TorchTraining:
    """The flexible UNet in training by the same parts that `ovseg train` uses.

    Args:
        settings: of the comparison.
        weights: Keras' initial weights.
    """

    def __init__(self, settings: Settings, weights: Path) -> None:
        self.model = build_model("flexible_unet", **settings.network, dropout_rate=0.0)
        load_keras_weights(self.model, weights)
        self.clip_value = settings.optimizer["clip_value"]
        self.optimizer = KerasAdam(
            self.model.parameters(),
            lr=settings.optimizer["lr"],
            eps=settings.optimizer["eps"],
        )
        self.loss = build_loss(WANTED["loss"])

    def step(self, image: np.ndarray, mask: np.ndarray) -> tuple[float, float]:
        """Train on one batch; loss and dice_coef before the step."""
        reference = _to_torch(mask)
        logits = self.model(_to_torch(image))
        loss = self.loss(logits, reference)
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_value_(self.model.parameters(), self.clip_value)
        self.optimizer.step()
        dice = dice_coef(logits.detach().sigmoid(), reference)
        return loss.item(), dice.item()

    @torch.inference_mode()
    def evaluate(self, batches: list[Batch]) -> tuple[float, float]:
        """Mean loss over images and mean dice_coef over batches, as the baseline evaluates."""
        self.model.eval()
        losses = []
        scores = []
        counts = []
        for image, mask in batches:
            reference = _to_torch(mask)
            logits = self.model(_to_torch(image))
            losses.append(self.loss(logits, reference).item())
            scores.append(dice_coef(logits.sigmoid(), reference).item())
            counts.append(len(image))
        return float(np.average(losses, weights=counts)), float(np.mean(scores))


def _to_torch(array: np.ndarray) -> torch.Tensor:
    """(N, H, W, C) to (N, C, H, W)."""
    return torch.from_numpy(array).permute(0, 3, 1, 2).contiguous()


def _tabulate(results: dict[str, Result], settings: Settings) -> pd.DataFrame:
    rows = []
    for name, result in results.items():
        seconds = float(np.median(result.seconds[WARMUP_STEPS:]))
        last_loss, _ = result.scores[-1]
        test_loss, test_dice = result.test
        rows.append(
            {
                "tool": name,
                "last loss": last_loss,
                "test loss": test_loss,
                "test dice_coef": test_dice,
                "s/step": seconds,
                "images/s": settings.batch_size / seconds,
                "peak MiB": result.peak_mib,
            }
        )
    table = pd.DataFrame(rows).set_index("tool")
    table["speed, TensorFlow = 1"] = table["s/step"]["TensorFlow"] / table["s/step"]
    return table


def _write(
    folder: Path, results: dict[str, Result], table: pd.DataFrame, settings: Settings
) -> None:
    steps = pd.DataFrame({"step": range(1, settings.steps + 1)})
    for name, result in results.items():
        steps[f"{name} loss"] = [loss for loss, _ in result.scores]
        steps[f"{name} dice_coef"] = [dice for _, dice in result.scores]
    epoch_of_step = (steps["step"] - 1) // settings.steps_per_epoch + 1
    epochs = steps.drop(columns="step").groupby(epoch_of_step).mean().rename_axis("epoch")

    steps.to_csv(folder / "steps.csv", index=False)
    epochs.to_csv(folder / "epochs.csv")
    table.to_csv(folder / "comparison.csv")
    difference = (steps["ovseg loss"] - steps["TensorFlow loss"]).abs().max()
    content = {
        "settings": asdict(settings),
        "versions": installed_versions(("torch", "tensorflow", "tensorflow-cpu", "keras", "ovseg")),
        "cpus": os.cpu_count(),
        "table": table.to_dict("index"),
        "largest_loss_difference": float(difference),
    }
    write_json(folder / "comparison.json", content)
    curves = steps.set_index("step")
    if len(epochs) > 1:
        curves = epochs
    save_figure(_draw(curves), folder / "comparison.png")


def _draw(curves: pd.DataFrame) -> Figure:
    """Loss and dice_coef of both tools; the index is the step or the epoch and has its name."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    for axes, score in zip(figure.subplots(1, 2), ("loss", "dice_coef"), strict=True):
        tensorflow = curves[f"TensorFlow {score}"]
        ours = curves[f"ovseg {score}"]
        axes.plot(tensorflow, color="tab:orange", linewidth=3, label="TensorFlow")
        axes.plot(ours, color="black", linewidth=1, label="ovseg")
        axes.set(xlabel=curves.index.name, title=f"{score} of each {curves.index.name}")
        axes.grid(alpha=0.3)
        axes.legend()
    return figure
