"""A configuration of the TensorFlow baseline, and its weights, to a run folder that evaluate, infer and train take."""

import csv
from pathlib import Path
from typing import Any

import yaml
from pytorch_lightning import Trainer
from torch import nn

from ovseg.baseline_config import explain_baseline_config, read_baseline_config
from ovseg.data.datamodule import OvarianTumorDataModule
from ovseg.files import atomic_dir
from ovseg.models import build_model
from ovseg.models.keras_weights import load_keras_weights
from ovseg.task import SegmentationTask


def import_baseline(
    config_path: Path, weights: Path | None, output: Path, overwrite: bool = False
) -> list[tuple[str, str, str]]:
    """Write `config.yaml` and `import.csv`, and with weights a run: `checkpoints/best.ckpt`.

    Args:
        config_path: the baseline's configuration.
        weights: its weights, see `ovseg.models.keras_weights`; None converts the configuration only.
        output: run folder to make.
        overwrite: replace an earlier import.

    Returns:
        The rows of `explain_baseline_config`.

    Raises:
        InputError: configuration or weights can't be used, or they disagree; nothing is written.
    """
    config, rows = read_baseline_config(config_path), explain_baseline_config(config_path)
    network = build_model(config["model"]["arch"], **config["model"]["arch_args"])
    if weights is not None:
        load_keras_weights(network, weights)
    with atomic_dir(output, overwrite, marker="import.csv") as folder:
        (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
        with open(folder / "import.csv", "w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("key", "value", "becomes"), *rows])
        if weights is not None:
            _save_checkpoint(config, network, folder)
    return rows


def _save_checkpoint(config: dict[str, Any], network: nn.Module, folder: Path) -> None:
    """A checkpoint as after no epoch: Lightning writes it, so evaluate, infer and resume take it like any other."""
    task, data = SegmentationTask(**config["model"]), OvarianTumorDataModule(**config["data"])
    task.network.load_state_dict(network.state_dict())
    quiet = {
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
    }
    trainer = Trainer(
        max_epochs=1, limit_train_batches=0, limit_val_batches=0, accelerator="cpu", default_root_dir=folder, **quiet
    )
    data.prepare_data = lambda: None  # the data need not be here
    trainer.fit(task, data)
    trainer.save_checkpoint(folder / "checkpoints" / "best.ckpt")
