"""What happens around training, a file a purpose."""

from ovseg.training.callbacks.break_training import BreakTraining
from ovseg.training.callbacks.checkpoints import BestCheckpoint, LastCheckpoint
from ovseg.training.callbacks.curves import CURVES, Curves, HistoryPlots, last_epoch
from ovseg.training.callbacks.divergence import EndIfDiverged
from ovseg.training.callbacks.early_stopping import (
    EARLY_STOPPING_DEFAULTS,
    ExplainedEarlyStopping,
    stopped_early,
)
from ovseg.training.callbacks.progress import LineProgress
from ovseg.training.callbacks.seed import EpochSeed
from ovseg.training.callbacks.shown import MetricsLog, Shown
from ovseg.training.callbacks.snapshots import EpochSnapshots

__all__ = [
    "CURVES",
    "EARLY_STOPPING_DEFAULTS",
    "BestCheckpoint",
    "BreakTraining",
    "Curves",
    "EndIfDiverged",
    "EpochSeed",
    "EpochSnapshots",
    "ExplainedEarlyStopping",
    "HistoryPlots",
    "LastCheckpoint",
    "LineProgress",
    "MetricsLog",
    "Shown",
    "last_epoch",
    "stopped_early",
]
