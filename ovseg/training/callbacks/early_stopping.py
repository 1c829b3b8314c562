"""Early stopping: Lightning's callback, with the baseline's defaults."""

from typing import Any

from pytorch_lightning.callbacks import EarlyStopping

from ovseg.core.checkpoints import epochs_done

# What differs from Lightning's own. A run that max_steps ends early has no validation, so nothing
# to monitor; that the monitored name is logged is checked before training.
EARLY_STOPPING_DEFAULTS = {"monitor": "val_loss", "patience": 10, "strict": False}


def stopped_early(checkpoint: dict[str, Any]) -> bool:
    """Whether early stopping had ended the training that wrote a checkpoint.

    It ends a training by its patience, or by its `stopping_threshold`, `divergence_threshold` or
    `check_finite` in the last epoch that was done.
    """
    last_epoch = epochs_done(checkpoint) - 1
    for name, state in checkpoint["callbacks"].items():
        if not name.startswith(EarlyStopping.__name__):
            continue
        out_of_patience = state["wait_count"] >= state["patience"]
        stopped_at_once = 0 < state["stopped_epoch"] == last_epoch
        if out_of_patience or stopped_at_once:
            return True
    return False
