"""An exponential moving average of the weights, for validation, snapshots and checkpoints."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import WeightAveraging
from torch import Tensor

from ovseg.core.errors import InputError


class AveragedWeights(WeightAveraging):
    """Lightning's weight averaging, exponential, with a warm-up.

    A checkpoint's `state_dict` is the average. The decay after t steps is the lesser of `decay` and
    (1 + t) / (10 + t), as in TensorFlow's moving average, so that the first epochs' scores are not
    those of the weights with which training began; Lightning's EMAWeightAveraging has no such
    warm-up. Statistics of batch norms are averaged as weights are: those of the last step belong to
    weights that are not used. Counters are copied.

    Args:
        decay: above 0 and below 1; 0.995 averages over the last 200 steps or so.

    Raises:
        InputError: the decay is not in that range.
    """

    def __init__(self, decay: float):
        if not 0 < decay < 1:
            raise InputError(
                f"ema.decay is {decay}, expected above 0 and below 1, or 0 for no average."
            )
        super().__init__(use_buffers=True, multi_avg_fn=self._average)
        self.decay = decay
        self.is_in_use = False  # whether the module has the averaged weights

    @torch.no_grad()
    def _average(self, averages: list[Tensor], current: list[Tensor], count: Tensor) -> None:
        steps = int(count)
        weight = 1 - min(self.decay, (1 + steps) / (10 + steps))
        for average, value in zip(averages, current, strict=True):
            if average.is_floating_point():
                average.lerp_(value, weight)
            else:
                average.copy_(value)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the module the averaged weights."""
        super().on_validation_epoch_start(trainer, pl_module)
        self.is_in_use = True

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the module its own weights again."""
        super().on_validation_epoch_end(trainer, pl_module)
        self.is_in_use = False

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Give the weights back if validation was interrupted, for the checkpoint that follows."""
        if self.is_in_use:
            self.on_validation_epoch_end(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "decay": self.decay}


@contextmanager
def averaged(trainer: Trainer, pl_module: LightningModule) -> Iterator[None]:
    """Give the module the averaged weights for the block, where there is an average."""
    callbacks = []
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, AveragedWeights):
            callbacks.append(callback)
    for callback in callbacks:
        callback.on_validation_epoch_start(trainer, pl_module)
    try:
        yield
    finally:
        for callback in callbacks:
            # An exception's own hook may have given the weights back already.
            if callback.is_in_use:
                callback.on_validation_epoch_end(trainer, pl_module)


def decay_of(checkpoint: dict[str, Any]) -> float:
    """The decay of the average that a checkpoint holds; 0 where it holds none."""
    callbacks = checkpoint.get("callbacks", {})
    state = callbacks.get(AveragedWeights.__qualname__, {})
    return state.get("decay", 0.0)
