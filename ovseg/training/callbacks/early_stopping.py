"""Early stopping: Lightning's callback, with the baseline's defaults and a reason for each end."""

import math
from typing import Any

from pytorch_lightning import LightningModule, Trainer, callbacks
from pytorch_lightning.callbacks.early_stopping import EarlyStoppingReason
from pytorch_lightning.utilities import rank_zero_info

from ovseg.core.checkpoints import epochs_done

# What differs from Lightning's own. A run that max_steps ends early has no validation, so nothing
# to monitor; that the monitored name is logged is checked before training.
EARLY_STOPPING_DEFAULTS = {"monitor": "val_loss", "patience": 10, "strict": False}
# The ends by one value alone, whatever the patience.
AT_ONCE = (
    EarlyStoppingReason.STOPPING_THRESHOLD,
    EarlyStoppingReason.DIVERGENCE_THRESHOLD,
    EarlyStoppingReason.NON_FINITE_METRIC,
)


class ExplainedEarlyStopping(callbacks.EarlyStopping):
    """Ends training when the monitored value no longer improves, and says why.

    An epoch in which the value is NaN is not counted: a score is NaN where no image has a value,
    and a loss that is NaN ends the training as an error, see `EndIfDiverged`. A resumed training
    has the patience of its own configuration.
    """

    @property
    def state_key(self) -> str:
        """That of Lightning's class, under which earlier checkpoints hold the state."""
        own = type(self).__qualname__
        return super().state_key.replace(own, callbacks.EarlyStopping.__qualname__, 1)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the best value, and the number of epochs without a better one."""
        super().load_state_dict({**state_dict, "patience": self.patience})
        ran_out = self.stopping_reason is EarlyStoppingReason.PATIENCE_EXHAUSTED
        if ran_out and self.wait_count < self.patience:
            self.stopping_reason = EarlyStoppingReason.NOT_STOPPED
            self.stopping_reason_message = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop a resumed training too if it only went on to reach `min_epochs`."""
        if self.stopping_reason is not EarlyStoppingReason.NOT_STOPPED:
            trainer.should_stop = True

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._is_nan(trainer):
            super().on_train_epoch_end(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._is_nan(trainer):
            super().on_validation_end(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say why training has ended."""
        if self.stopping_reason_message:
            reason = self.stopping_reason_message.removesuffix(" Signaling Trainer to stop.")
            rank_zero_info(f"Early stopping in epoch {self.stopped_epoch + 1}: {reason}")

    def _is_nan(self, trainer: Trainer) -> bool:
        return math.isnan(trainer.callback_metrics.get(self.monitor, 0.0))


def stopped_early(checkpoint: dict[str, Any], patience: int | None = None) -> bool:
    """Whether early stopping had ended the training that wrote a checkpoint.

    It ends a training by its patience, or by its `stopping_threshold`, `divergence_threshold` or
    `check_finite` in the last epoch that was done.

    Args:
        checkpoint: see `ovseg.core.checkpoints.read_checkpoint`.
        patience: whether this patience would have ended it; None for that of the training.
    """
    last_epoch = epochs_done(checkpoint) - 1
    for name, state in checkpoint["callbacks"].items():
        if not name.startswith(callbacks.EarlyStopping.__name__):
            continue
        allowed = state["patience"] if patience is None else patience
        at_once = EarlyStoppingReason(state["stopping_reason"]) in AT_ONCE
        if state["wait_count"] >= allowed or (at_once and state["stopped_epoch"] == last_epoch):
            return True
    return False
