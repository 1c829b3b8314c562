"""The end of a training that cannot recover."""

import math

from pytorch_lightning import Callback, LightningModule, Trainer

from ovseg.core.errors import InputError
from ovseg.core.runs import LAST
from ovseg.training.callbacks.curves import Curves
from ovseg.training.callbacks.run_folder import run_of


class EndIfDiverged(Callback):
    """Ends training as an error after an epoch whose validation loss is NaN.

    Weights that are NaN stay NaN. Lightning runs it before the callbacks that write checkpoints, so
    that none holds them.
    """

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        loss = float(trainer.callback_metrics.get("val_loss", 0.0))
        if not math.isnan(loss):
            return
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, Curves):  # they would come too late, and show what happened
                callback.on_train_epoch_end(trainer, pl_module)
        run = run_of(trainer)
        kept = "There is no checkpoint"
        if run.checkpoint(LAST).is_file():
            kept = f"{run.checkpoint(LAST)} is of the epoch before"
        raise InputError(
            f"Training diverged: val_loss is nan after epoch {trainer.current_epoch + 1}. Lower "
            "model.optimizer_args.lr or clip gradients (trainer.gradient_clip_val). Nothing was "
            f"evaluated; the curves are in {run.path}. {kept}."
        )
