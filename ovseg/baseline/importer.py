"""A configuration of the TensorFlow baseline, and its weights, to a run folder that evaluate, infer and train take."""

import csv
from pathlib import Path
from typing import Any

import yaml
from pytorch_lightning import Trainer

from ovseg.baseline.config import explain_baseline_config, read_baseline_config
from ovseg.baseline.keras_weights import load_keras_weights
from ovseg.core.errors import InputError, first_five
from ovseg.core.files import atomic_dir
from ovseg.core.runs import RunFolder
from ovseg.data.datamodule import OvarianTumorDataModule
from ovseg.training.task import SegmentationTask


def import_baseline(
    config_path: Path, weights: Path | None, output: Path, overwrite: bool = False
) -> list[tuple[str, str, str]]:
    """Write `config.yaml` and `import.csv`, and with weights a run: `checkpoints/best.ckpt`.

    Args:
        config_path: the baseline's configuration.
        weights: its weights, see `ovseg.baseline.keras_weights`; None converts the configuration only.
        output: run folder to make.
        overwrite: replace an earlier import.

    Returns:
        The rows of `explain_baseline_config`.

    Raises:
        InputError: configuration or weights can't be used, or they disagree; nothing is written.
    """
    config, rows = read_baseline_config(config_path), explain_baseline_config(config_path)
    _check_trainable(config_path, config)
    task, data = SegmentationTask(**config["model"]), OvarianTumorDataModule(**config["data"])
    if weights is not None:
        load_keras_weights(task.network, weights)
    with atomic_dir(output, overwrite, marker="import.csv") as folder:
        RunFolder(folder).config.write_text(
            yaml.safe_dump(config, sort_keys=False), encoding="utf-8"
        )
        with open(folder / "import.csv", "w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("key", "value", "becomes"), *rows])
        if weights is not None:
            _save_checkpoint(task, data, folder)
    return rows


def _check_trainable(path: Path, config: dict[str, Any]) -> None:
    """Refuse what the network or the data do not refuse themselves, but training would."""
    numbers = {
        "epochs": config["trainer"]["max_epochs"],
        "patience": config["early_stopping"]["patience"],
    }
    numbers |= {
        "clipvalue": config["trainer"]["gradient_clip_val"],
        "learning_rate": config["model"]["optimizer_args"]["lr"],
    }
    wrong = [f"{name} is {value}" for name, value in numbers.items() if value <= 0]
    if wrong:
        raise InputError(f"{path}: {first_five(wrong)}, expected more than 0. Mend it.")
    height, width = (config["model"]["arch_args"].get("image_size") or (1, 1))[:2]
    if height != width:
        raise InputError(
            f"{path}: this network's learnt places are for images of {height} x {width}, but training and inference "
            "here use squares. Only read_baseline_config takes it."
        )


def _save_checkpoint(task: SegmentationTask, data: OvarianTumorDataModule, folder: Path) -> None:
    """A checkpoint as after no epoch: Lightning writes it, so evaluate, infer and resume take it like any other."""
    quiet = {
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
    }
    trainer = Trainer(
        max_epochs=1,
        limit_train_batches=0,
        limit_val_batches=0,
        accelerator="cpu",
        default_root_dir=folder,
        **quiet,
    )
    data.prepare_data = lambda: None  # the data need not be here
    trainer.fit(task, data)
    trainer.save_checkpoint(RunFolder(folder).checkpoint("best"))
