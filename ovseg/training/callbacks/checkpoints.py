"""Which checkpoints a run keeps."""

import shutil
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.utilities import rank_zero_info
from pytorch_lightning.utilities.exceptions import SIGTERMException
from torch import Tensor

from ovseg.core.files import atomic_path
from ovseg.core.runs import BEST, INTERRUPTED, LAST, RunFolder
from ovseg.metrics import monitor_mode

EPOCH = "epoch"  # as a monitor, the number of the epoch


class BestCheckpoint(ModelCheckpoint):
    """Keeps `checkpoints/best.ckpt`, the epoch with the best monitored value.

    A resumed run has a folder of its own; the best checkpoint so far is copied into it, with its
    score.

    Args:
        monitor: logged name; a loss is best low, a score high. `epoch` keeps the last one, for a
            training that ends with a small learning rate: no image chooses, so scores of the
            validation images, and those of a cross-validation, are those of new images.
    """

    def __init__(self, monitor: str = "val_loss"):
        super().__init__(
            filename=BEST,
            monitor=monitor,
            mode="max" if monitor == EPOCH else monitor_mode(monitor),
            save_on_train_epoch_end=True,
            enable_version_counter=False,
        )
        self.resumed_run = RunFolder(Path())

    def check_monitor_top_k(self, trainer: Trainer, current: Tensor | None = None) -> bool:
        """Whether a value is the best so far; NaN, which has no order, never is."""
        if current is not None and torch.isnan(current):
            return False
        return super().check_monitor_top_k(trainer, current)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Copy the best checkpoint so far from the run that is resumed."""
        new = RunFolder(Path(self.dirpath or ".").parent).checkpoint(BEST)
        old = Path(state_dict["best_model_path"])
        if not old.is_file():
            # The run has been moved.
            old = self.resumed_run.checkpoint(BEST)
        if not old.is_file():
            rank_zero_info(
                f"The best checkpoint so far, {old}, is missing: only epochs from here on can "
                "become the best."
            )
            return
        if old != new:
            _copy(old, new)
        state = {
            **state_dict,
            "best_k_models": {str(new): state_dict["best_model_score"]},
            "kth_best_model_path": str(new),
            "best_model_path": str(new),
            "dirpath": self.dirpath,
            "last_model_path": "",
        }
        super().load_state_dict(state)


class LastCheckpoint(ModelCheckpoint):
    """Keeps `checkpoints/last.ckpt`, the last complete epoch.

    A resume from it equals an uninterrupted run. Until a resumed run has completed an epoch, it is
    a copy of the checkpoint that was resumed.
    """

    def __init__(self) -> None:
        super().__init__(filename=LAST, save_on_train_epoch_end=True, enable_version_counter=False)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take nothing from a checkpoint: the resumed run writes its own file."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Copy the checkpoint that is resumed."""
        super().on_train_start(trainer, pl_module)
        resumed = trainer.ckpt_path
        if resumed and trainer.is_global_zero and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            run = RunFolder(Path(self.dirpath or ".").parent)
            _copy(Path(resumed), run.checkpoint(LAST))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep a complete epoch.

        One that max_time or max_steps ended early is not kept, because a resume could not finish
        it.
        """
        if trainer.is_last_batch:
            super().on_train_epoch_end(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write nothing: the last complete epoch is kept already."""

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """On Ctrl-C or SIGTERM keep the unfinished epoch's weights as `interrupted.ckpt`.

        It is for evaluate and infer. With several processes only `last.ckpt` is kept. How to resume
        is said by `ovseg.experiments.train`.
        """
        if not isinstance(exception, KeyboardInterrupt | SIGTERMException):
            return
        if trainer.fast_dev_run or trainer.sanity_checking:  # type: ignore[attr-defined]
            return
        if trainer.world_size == 1:
            run = RunFolder(Path(self.dirpath or ".").parent)
            trainer.save_checkpoint(run.checkpoint(INTERRUPTED))


def _copy(old: Path, new: Path) -> None:
    """Copy a checkpoint; it is whole or absent at its new place."""
    with atomic_path(new) as temporary:
        shutil.copyfile(old, temporary)
