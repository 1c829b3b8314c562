"""Turn a configuration of the TensorFlow baseline, and its weights, into a run folder.

`ovseg evaluate`, `infer` and `train` take that folder like any other run.
"""

import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import yaml
from pytorch_lightning import Trainer
from torch import nn

from ovseg.baseline.config import convert_baseline_config
from ovseg.baseline.keras_weights import load_keras_weights
from ovseg.core.errors import InputError, first_five
from ovseg.core.files import atomic_dir, write_table
from ovseg.core.runs import BEST, RunFolder
from ovseg.data.datamodule import OvarianTumorDataModule
from ovseg.models.layers import InputScale
from ovseg.training.task import SegmentationTask


def import_baseline(
    config_path: Path, weights: Path | None, output: Path, overwrite: bool = False
) -> list[tuple[str, str, str]]:
    """Write `config.yaml` and `import.csv`, and with weights a run: `checkpoints/best.ckpt`.

    The baseline's configuration is copied too. If the baseline trained on pictures as BGR, the
    input channels of the weights are exchanged, because ovseg's networks take RGB.

    Args:
        config_path: the baseline's configuration.
        weights: its weights, see `ovseg.baseline.keras_weights`, or a folder with the file that the
            configuration names; None converts the configuration only.
        output: run folder to make.
        overwrite: replace an earlier import.

    Returns:
        The rows of `ovseg.baseline.config.explain_baseline_config`.

    Raises:
        InputError: configuration or weights cannot be used, or they disagree; nothing is written.
    """
    baseline = convert_baseline_config(config_path)
    config = baseline.experiment
    rows = baseline.rows
    _check_trainable(config_path, config)
    task = SegmentationTask(**config["model"])
    data = OvarianTumorDataModule(**config["data"])
    if weights is not None:
        path = Path(weights)
        load_keras_weights(task.network, path / baseline.weights_name if path.is_dir() else path)
        if baseline.bgr:
            size = config["model"]["arch_args"].get("image_size", [64, 64])
            exchange_input_channels(task.network, *size)

    with atomic_dir(output, overwrite, marker=RunFolder(output).import_table.name) as folder:
        run = RunFolder(folder)
        shutil.copyfile(config_path, run.baseline_config)
        run.config.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
        table = pd.DataFrame(rows, columns=["key", "value", "becomes"])
        write_table(run.import_table, table)
        if weights is not None:
            _save_checkpoint(task, data, run)
    return rows


@torch.inference_mode()
def exchange_input_channels(network: nn.Module, height: int = 64, width: int = 64) -> None:
    """Change a network of pictures as BGR into one that gives the same for them as RGB.

    Args:
        network: its weights are changed.
        height: rows of the picture that it is checked with.
        width: columns of it.

    Raises:
        InputError: the network then gives something else.
    """
    was_training = network.training
    network.eval()
    generator = torch.Generator().manual_seed(0)
    bgr = torch.randint(0, 256, (1, 3, height, width), dtype=torch.uint8, generator=generator)
    expected = network(bgr)
    for module in network.modules():
        if isinstance(module, InputScale) and module.factor.shape[1] == 3:
            module.factor.copy_(module.factor.flip(1))
            module.offset.copy_(module.offset.flip(1))
        elif isinstance(module, nn.Conv2d) and module.in_channels == 3:
            module.weight.copy_(module.weight.flip(1))
    found = network(bgr.flip(1))
    network.train(was_training)
    tolerance = 1e-3 * max(1.0, float(expected.abs().max()))
    if (found - expected).abs().max() > tolerance:
        raise InputError(
            f"The weights of {type(network).__name__} are for pictures as BGR, and its input "
            "channels can't be exchanged. Train it with BaseImageMaskDataset, which reads RGB."
        )


def _check_trainable(path: Path, config: dict[str, Any]) -> None:
    """Refuse what neither the network nor the data module refuses, but training would."""
    numbers = {
        "epochs": config["trainer"]["max_epochs"],
        "patience": config["early_stopping"]["patience"],
        "clipvalue": config["trainer"]["gradient_clip_val"],
        "learning_rate": config["model"]["optimizer_args"]["lr"],
    }
    wrong = [f"{name} is {value}" for name, value in numbers.items() if value <= 0]
    if wrong:
        raise InputError(f"{path}: {first_five(wrong)}, expected more than 0. Correct the file.")

    image_size = config["model"]["arch_args"].get("image_size")
    if image_size is None:
        return
    height, width = image_size
    if height != width:
        raise InputError(
            f"{path}: the position embeddings of this network are for images of {height} x "
            f"{width}, but training and inference use squares. Only read_baseline_config takes it."
        )


def _save_checkpoint(task: SegmentationTask, data: OvarianTumorDataModule, run: RunFolder) -> None:
    """Let Lightning write a checkpoint of no epoch, so that it is a checkpoint like any other."""
    trainer = Trainer(
        max_epochs=1,
        limit_train_batches=0,
        limit_val_batches=0,
        accelerator="cpu",
        default_root_dir=run.path,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    data.prepare_data = _read_nothing  # type: ignore[method-assign]
    trainer.fit(task, data)
    trainer.save_checkpoint(run.checkpoint(BEST))


def _read_nothing() -> None:
    """In place of the data module's verification: the dataset need not be on this machine."""
