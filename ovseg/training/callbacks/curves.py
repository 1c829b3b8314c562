"""Curves of losses and scores."""

from typing import Any

import pandas as pd
from pytorch_lightning import Callback, LightningModule, Trainer

from ovseg.core.files import write_table
from ovseg.core.plots import draw_curves
from ovseg.core.runs import RunFolder
from ovseg.metrics import SCORES
from ovseg.training.callbacks.shown import Shown

# Logged scores that are drawn.
CURVES = [f"val_{name}" for name, score in SCORES.items() if score.in_curves]
# Columns of the tables, with the baseline's names, and what is logged.
LOSSES = {"loss": "train_loss", "val_loss": "val_loss"}
METRICS = {"dice_coef": "train_dice_coef", **{name: name for name in CURVES}}


class HistoryPlots(Callback):
    """What the curves show, a row an epoch; epochs are counted from 1.

    The rows are part of the checkpoint, so the curves of a resumed run begin with epoch 1.
    """

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows = list(state_dict["rows"])

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        row: dict[str, float] = {"epoch": trainer.current_epoch + 1}
        for column, logged in {**LOSSES, **METRICS}.items():
            if logged in trainer.callback_metrics:
                row[column] = float(trainer.callback_metrics[logged])
        self.rows.append(row)


class Curves(Shown):
    """The rows of `HistoryPlots` as CSV and PNG, written again after each epoch.

    They are `train_losses` and `train_metrics` in the run folder.
    """

    what = "Curves"

    def show(self, trainer: Trainer, pl_module: LightningModule, run: RunFolder) -> None:
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, HistoryPlots):
                history = pd.DataFrame(callback.rows)
                _write(history, run, "losses", LOSSES)
                _write(history, run, "metrics", METRICS)


def last_epoch(checkpoint: dict[str, Any]) -> dict[str, float]:
    """What a training had logged of its last epoch when it wrote a checkpoint, by name."""
    return checkpoint["callbacks"][HistoryPlots.__name__]["rows"][-1]


def _write(history: pd.DataFrame, run: RunFolder, kind: str, columns: dict[str, str]) -> None:
    present = [name for name in history if name in columns]
    table = history[["epoch", *present]]
    write_table(run.curves(kind, ".csv"), table)
    draw_curves(table, run.curves(kind, ".png"))
