"""What only shows how a training goes: it comes after the checkpoints and never ends a training."""

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Checkpoint
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.utilities import rank_zero_info

from ovseg.core.runs import RunFolder
from ovseg.training.callbacks.run_folder import run_of


class Shown(Checkpoint):
    """Shows an epoch: pictures, curves. What fails there is said once, and training continues.

    It is a `Checkpoint` for Lightning because those are called after all others at the end of an
    epoch; `ovseg.experiments.train` lists it behind those that keep the epoch's weights.
    """

    what = "What is shown"
    has_failed = False

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        run = run_of(trainer)
        if trainer.fast_dev_run or not trainer.is_global_zero:  # type: ignore[attr-defined]
            return
        try:
            self.show(trainer, pl_module, run)
        # Whatever it is: a picture is not worth a training.
        except Exception as error:
            if not self.has_failed:
                tell_failure(self.what, error)
            self.has_failed = True

    def show(self, trainer: Trainer, pl_module: LightningModule, run: RunFolder) -> None:
        """Write what shows the epoch that has ended; called in the first process only."""
        raise NotImplementedError


class MetricsLog(CSVLogger):
    """Lightning's log of the metrics, whose file may be missing lines if it can't be written."""

    has_failed = False

    def save(self) -> None:
        try:
            super().save()
        except OSError as error:
            if not self.has_failed:
                tell_failure("metrics.csv", error)
            self.has_failed = True


def tell_failure(what: str, error: Exception) -> None:
    """Log a failure that does not end a training."""
    text = " ".join(str(error).split()) or type(error).__name__
    rank_zero_info(f"{what} could not be written, and training continues: {text}")
