"""An exponential moving average of the weights, which validation, snapshots and checkpoints use in their place."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import WeightAveraging
from torch import Tensor

from ovseg.core.errors import InputError


class AveragedWeights(WeightAveraging):
    """Lightning's weight averaging, exponential, with a warm-up; a checkpoint's `state_dict` is the average.

    The decay is the lesser of `decay` and (1 + t) / (10 + t) after t steps, as in TensorFlow's moving average: so the
    first epochs' scores are not those of the weights that training began with. Statistics of batch norms are averaged
    as weights are: the copied ones of the last step belong to weights that are not used. Counters are copied.

    Args:
        decay: in 0..1 without both ends; 0.995 averages over the last 200 steps or so.

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
        self.swapped = False

    @torch.no_grad()
    def _average(self, averaged: list[Tensor], current: list[Tensor], count: Tensor) -> None:
        weight = 1 - min(self.decay, (1 + int(count)) / (10 + int(count)))
        for mean, value in zip(averaged, current, strict=True):
            mean.lerp_(value, weight) if mean.is_floating_point() else mean.copy_(value)

    def _swap_models(self, pl_module: LightningModule) -> None:
        super()._swap_models(pl_module)
        self.swapped = not self.swapped

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """A validation that was broken off gives the weights back, for the checkpoint that is written then."""
        if self.swapped:
            self._swap_models(pl_module)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "decay": self.decay}


@contextmanager
def averaged(trainer: Trainer, pl_module: LightningModule) -> Iterator[None]:
    """Inside the block the module has the averaged weights, where there is an average."""
    callbacks = [
        callback for callback in trainer.callbacks if isinstance(callback, AveragedWeights)
    ]
    for callback in callbacks:
        callback._swap_models(pl_module)
    try:
        yield
    finally:
        for callback in callbacks:
            if callback.swapped:
                callback._swap_models(pl_module)


def decay_of(checkpoint: dict[str, Any]) -> float:
    """The decay of the average that a checkpoint holds, 0 where it holds none."""
    return checkpoint.get("callbacks", {}).get(AveragedWeights.__qualname__, {}).get("decay", 0.0)
