"""The run folder of a training."""

from pathlib import Path

from pytorch_lightning import Trainer

from ovseg.core.runs import RunFolder


def run_of(trainer: Trainer) -> RunFolder:
    """The folder that a training writes to; every process must ask, because they agree on it."""
    return RunFolder(Path(trainer.log_dir or "."))
