"""The same training in TensorFlow and in ovseg, side by side."""

import importlib.metadata
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure

from ovseg.baseline.keras_weights import load_keras_weights
from ovseg.core.console import progress_bar
from ovseg.core.errors import InputError
from ovseg.core.files import atomic_dir, write_json
from ovseg.core.plots import save_figure
from ovseg.core.processes import peak_memory, run_alone
from ovseg.data.datamodule import OvarianTumorDataModule
from ovseg.metrics import dice_coef
from ovseg.models import build_model
from ovseg.training.losses import build_loss
from ovseg.training.optim import KerasAdam


def compare_training(
    config: dict[str, Any],
    output: Path,
    steps: int = 200,
    image_size: int = 128,
    overwrite: bool = False,
    epochs: int | None = None,
) -> pd.DataFrame:
    """Train the flexible UNet in TensorFlow and in ovseg from the same weights on the same batches, without dropout.

    Each runs in a process of its own, one after the other, on the same number of threads. Writes `steps.csv`,
    `epochs.csv`, `comparison.csv`, `comparison.json` and `comparison.png`.

    Args:
        config: `model` and `data` as in `configs/unet.yaml`; loss `bce_dice_loss`, optimiser `keras_adam`.
        output: folder to make.
        steps: training steps; the training images are gone through in order, again and again.
        image_size: side of the squares, pixels; a multiple of 2**(num_layers - 1).
        overwrite: replace an earlier comparison.
        epochs: train this often on the whole training split, in place of `steps`.

    Returns:
        A row each for TensorFlow and ovseg: last loss, test loss, test dice_coef, seconds a step (median without the
        first two), images a second, peak memory.

    Raises:
        InputError: another network, loss or optimiser, a size that Keras can't halve often enough, no TensorFlow.
    """
    settings = _settings(config, steps, image_size, epochs)
    with (
        atomic_dir(output, overwrite, marker="comparison.json") as folder,
        tempfile.TemporaryDirectory() as scratch,
    ):
        weights, data = Path(scratch) / "initial.weights.h5", Path(scratch) / "data.npz"
        _save_batches(settings, data)
        run_alone(_draw_weights, settings, weights)
        results = {
            name: run_alone(function, settings, weights, data)
            for name, function in (("TensorFlow", _train_in_keras), ("ovseg", _train_in_torch))
        }
        table = _tabulate(results, settings)
        _write(folder, results, table, settings)
    return table


def _settings(
    config: dict[str, Any], steps: int, image_size: int, epochs: int | None = None
) -> dict[str, Any]:
    model, data = config["model"], {**config["data"], "image_size": image_size}
    wanted = {"arch": "flexible_unet", "loss": "bce_dice_loss", "optimizer": "keras_adam"}
    for name, value in wanted.items():
        if model.get(name) != value:
            raise InputError(
                f"compare needs model.{name}: {value}, found {model.get(name)!r}. Use configs/unet.yaml."
            )
    defaults = {
        "base_filters": 16,
        "base_kernel": 9,
        "num_layers": 8,
        "dilation": 3,
        "activation": "relu",
    }
    network = {
        **defaults,
        "normalization": False,
        "input_scale": 1 / 255,
        **(model.get("arch_args") or {}),
    }
    for name in (
        "dropout_rate",
        "convolution",
    ):  # random numbers that differ, and a choice that Keras does not have
        network.pop(name, None)
    stride = 2 ** (network["num_layers"] - 1)
    if image_size % stride or steps < 3 or (epochs is not None and epochs < 1):
        raise InputError(
            f"--image-size {image_size} must be a multiple of {stride}, --steps {steps} at least 3 and --epochs "
            f"{epochs} at least 1."
        )
    trainer, given = config.get("trainer") or {}, model.get("optimizer_args") or {}
    optimizer = {"lr": given.get("lr", 1e-3), "eps": given.get("eps", 1e-7)}
    optimizer["clip_value"] = trainer.get("gradient_clip_val") or 1e9
    length = {"steps": steps, "epochs": epochs, "threads": torch.get_num_threads()}
    return {"network": network, "data": data, "optimizer": optimizer, **length}


def _save_batches(settings: dict[str, Any], path: Path) -> None:
    """The first images of the training split that the steps need (all for epochs), and the test split."""
    data = OvarianTumorDataModule(
        **{**settings["data"], "augmentation": "none", "shuffle": False, "num_workers": 0}
    )
    data.verify(("train", "test"))
    arrays, size = {}, data.hparams.batch_size
    per_epoch = -(-len(data.pairs("train")) // size)
    if settings["epochs"]:
        settings["steps"] = settings["epochs"] * per_epoch
    settings["steps_per_epoch"] = per_epoch
    for split, count in (("train", settings["steps"] * size), ("test", len(data.pairs("test")))):
        dataset = data.dataset(split)
        items = [
            dataset[i] for i in progress_bar(range(min(count, len(dataset))), f"Reading {split}")
        ]
        for name in ("image", "mask"):
            arrays[f"{split}_{name}"] = (
                torch.stack([item[name] for item in items]).permute(0, 2, 3, 1).numpy()
            )
    np.savez(path, **arrays)


def _batches(
    settings: dict[str, Any], path: Path, split: str
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Batches of images and masks, channels last; training ones are repeated until there are enough for all steps."""
    with np.load(path) as arrays:
        image, mask = arrays[f"{split}_image"], arrays[f"{split}_mask"]
    size = settings["data"].get("batch_size", 2) if split == "train" else 4
    batches = [(image[i : i + size], mask[i : i + size]) for i in range(0, len(image), size)]
    return (
        [batches[i % len(batches)] for i in range(settings["steps"])]
        if split == "train"
        else batches
    )


def _draw_weights(settings: dict[str, Any], weights: Path) -> None:
    from ovseg.baseline.keras_unet import save_initial_weights

    network = {**settings["network"], "image_size": settings["data"]["image_size"]}
    save_initial_weights(network, weights, settings["data"].get("seed", 42), settings["threads"])


def _train_in_keras(settings: dict[str, Any], weights: Path, data: Path) -> dict[str, Any]:
    from ovseg.baseline.keras_unet import evaluate_keras, train_keras

    network = {**settings["network"], "image_size": settings["data"]["image_size"]}
    batches, how = _batches(settings, data, "train"), (settings["optimizer"], settings["threads"])
    result = _record("TensorFlow", train_keras(network, weights, *how, batches), len(batches))
    result["test"] = evaluate_keras(result.pop("model"), _batches(settings, data, "test"))
    return result


def _train_in_torch(settings: dict[str, Any], weights: Path, data: Path) -> dict[str, Any]:
    torch.set_num_threads(settings["threads"])
    result = _record(
        "ovseg",
        _torch_steps(settings, weights, _batches(settings, data, "train")),
        settings["steps"],
    )
    model, loss, losses, scores, counts = (
        result.pop("model").eval(),
        build_loss("bce_dice_loss"),
        [],
        [],
        [],
    )
    with torch.inference_mode():
        for image, mask in (_to_torch(batch) for batch in _batches(settings, data, "test")):
            logits = model(image)
            losses.append(loss(logits, mask).item())
            scores.append(dice_coef(logits.sigmoid(), mask).item())
            counts.append(len(image))
    result["test"] = (float(np.average(losses, weights=counts)), float(np.mean(scores)))
    return result


def _torch_steps(settings: dict[str, Any], weights: Path, batches: list) -> Any:
    """Loss and dice_coef of each step, by the same parts that `train` uses; returns the trained network."""
    model = build_model("flexible_unet", **settings["network"], dropout_rate=0.0)
    load_keras_weights(model, weights)
    optimizer = KerasAdam(
        model.parameters(), lr=settings["optimizer"]["lr"], eps=settings["optimizer"]["eps"]
    )
    loss_function = build_loss("bce_dice_loss")
    for image, mask in (_to_torch(batch) for batch in batches):
        logits = model(image)
        loss = loss_function(logits, mask)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_value_(model.parameters(), settings["optimizer"]["clip_value"])
        optimizer.step()
        yield loss.item(), dice_coef(logits.detach().sigmoid(), mask).item()
    return model


def _to_torch(batch: tuple[np.ndarray, np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
    return tuple(torch.from_numpy(array).permute(0, 3, 1, 2).contiguous() for array in batch)


def _record(name: str, steps: Any, total: int) -> dict[str, Any]:
    """Run a generator of (loss, dice_coef) to its end: values, seconds of each step, peak memory in MiB, the model."""
    values, seconds, began = [], [], time.perf_counter()
    with progress_bar(None, name, total) as bar:
        while True:
            try:
                values.append(next(steps))
            except StopIteration as end:
                result = {"values": values, "seconds": seconds, "model": end.value}
                return {**result, "peak_mib": peak_memory()}
            now = time.perf_counter()
            seconds.append(now - began)
            began = now
            bar.update()


def _tabulate(results: dict[str, dict[str, Any]], settings: dict[str, Any]) -> pd.DataFrame:
    size = settings["data"].get("batch_size", 2)
    rows = []
    for name, result in results.items():
        step = float(np.median(result["seconds"][2:]))
        row = {"tool": name, "last loss": result["values"][-1][0], "test loss": result["test"][0]}
        row |= {"test dice_coef": result["test"][1], "s/step": step, "images/s": size / step}
        rows.append(row | {"peak MiB": result["peak_mib"]})
    table = pd.DataFrame(rows).set_index("tool")
    table["speed, TensorFlow = 1"] = table["s/step"]["TensorFlow"] / table["s/step"]
    return table


def _write(
    folder: Path, results: dict[str, dict[str, Any]], table: pd.DataFrame, settings: dict[str, Any]
) -> None:
    steps = pd.DataFrame({"step": range(1, settings["steps"] + 1)})
    for name, result in results.items():
        steps[f"{name} loss"], steps[f"{name} dice_coef"] = zip(*result["values"], strict=True)
    steps.to_csv(folder / "steps.csv", index=False)
    epochs = (
        steps.drop(columns="step")
        .groupby((steps["step"] - 1) // settings["steps_per_epoch"] + 1)
        .mean()
    )
    epochs.rename_axis("epoch").to_csv(folder / "epochs.csv")
    table.to_csv(folder / "comparison.csv")
    versions = {
        name: importlib.metadata.version(name)
        for name in ("torch", "tensorflow-cpu", "keras", "ovseg")
    }
    content = {
        "settings": settings,
        "versions": versions,
        "cpus": os.cpu_count(),
        "table": table.to_dict("index"),
    }
    gap = (steps["ovseg loss"] - steps["TensorFlow loss"]).abs()
    write_json(folder / "comparison.json", {**content, "largest_loss_difference": float(gap.max())})
    curves, unit = (epochs, "epoch") if len(epochs) > 1 else (steps.set_index("step"), "step")
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    for axes, what in zip(figure.subplots(1, 2), ("loss", "dice_coef"), strict=True):
        axes.plot(curves[f"TensorFlow {what}"], color="tab:orange", linewidth=3, label="TensorFlow")
        axes.plot(curves[f"ovseg {what}"], color="black", linewidth=1, label="ovseg")
        axes.set(xlabel=unit, title=f"{what} of each {unit}")
        axes.grid(alpha=0.3)
        axes.legend()
    save_figure(figure, folder / "comparison.png")
