"""Ending a training by hand."""

from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.utilities import rank_zero_info

from ovseg.training.callbacks.run_folder import run_of


class BreakTraining(Callback):
    """Ends training after the epoch in which a file `break_training` appears in the run folder.

    The file is removed.
    """

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        path = run_of(trainer).break_file
        if trainer.strategy.reduce_boolean_decision(path.exists(), all=False):
            trainer.should_stop = True
            trainer.strategy.barrier()
            if trainer.is_global_zero:
                path.unlink(missing_ok=True)
            rank_zero_info(f"{path} found: training ends after epoch {trainer.current_epoch + 1}.")
