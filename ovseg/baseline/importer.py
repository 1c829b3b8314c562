"""Turn a configuration of the TensorFlow baseline, and its weights, into a run folder.

`ovseg evaluate`, `infer` and `train` take that folder like any other run.
"""

from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from pytorch_lightning import Trainer

from ovseg.baseline.config import explain_baseline_config, read_baseline_config
from ovseg.baseline.keras_weights import load_keras_weights
from ovseg.baseline.rescaling import settle_rescaling
from ovseg.core.errors import InputError, first_five
from ovseg.core.files import atomic_dir, write_table
from ovseg.core.runs import BEST, RunFolder
from ovseg.data.datamodule import OvarianTumorDataModule
from ovseg.training.task import SegmentationTask


def import_baseline(
    config_path: Path, weights: Path | None, output: Path, overwrite: bool = False
) -> list[tuple[str, str, str]]:
    """Write `config.yaml` and `import.csv`, and with weights a run: `checkpoints/best.ckpt`.

    Args:
        config_path: the baseline's configuration.
        weights: its weights, see `ovseg.baseline.keras_weights`; None converts the configuration
            only.
        output: run folder to make.
        overwrite: replace an earlier import.

    Returns:
        The rows of `explain_baseline_config`, and one of `settle_rescaling`.

    Raises:
        InputError: configuration or weights cannot be used, or they disagree; nothing is written.
    """
    config = read_baseline_config(config_path)
    rows = explain_baseline_config(config_path)
    _check_trainable(config_path, config)
    rows = rows + settle_rescaling(config["model"], weights)
    task = SegmentationTask(**config["model"])
    data = OvarianTumorDataModule(**config["data"])
    if weights is not None:
        load_keras_weights(task.network, weights)

    with atomic_dir(output, overwrite, marker=RunFolder(output).import_table.name) as folder:
        run = RunFolder(folder)
        run.config.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
        table = pd.DataFrame(rows, columns=["key", "value", "becomes"])
        write_table(run.import_table, table)
        if weights is not None:
            _save_checkpoint(task, data, run)
    return rows


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

    channels = config["model"]["arch_args"].get("in_channels", 3)
    if channels != 3:
        raise InputError(
            f"{path}: image_channels is {channels}, but training and inference read RGB. Only "
            "read_baseline_config takes it."
        )
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
