"""What happens around training, a file a purpose."""

from ovseg.training.callbacks.checkpoints import BestCheckpoint, LastCheckpoint
from ovseg.training.callbacks.curves import CURVES, HistoryPlots
from ovseg.training.callbacks.progress import LineProgress
from ovseg.training.callbacks.seed import EpochSeed
from ovseg.training.callbacks.snapshots import EpochSnapshots
from ovseg.training.callbacks.stopping import BreakTraining

__all__ = [
    "CURVES",
    "BestCheckpoint",
    "BreakTraining",
    "EpochSeed",
    "EpochSnapshots",
    "HistoryPlots",
    "LastCheckpoint",
    "LineProgress",
]
