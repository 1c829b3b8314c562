"""Schedules of the learning rate by name.

Some are stepped at the end of an epoch on a watched value, others at every optimiser step. A group
of parameters keeps its own rate: every schedule multiplies the rate with which the group began.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR, ReduceLROnPlateau

from ovseg.core.errors import InputError
from ovseg.core.registry import check_arguments, choose


@dataclass(frozen=True)
class Length:
    """How long a training is, in optimiser steps.

    With gradient accumulation several batches are one step.

    Attributes:
        steps: of the whole training.
        epoch: of one epoch.
    """

    steps: int
    epoch: int


ANY_LENGTH = Length(10**9, 1)  # to check a schedule's arguments before the length is known


def keras_plateau(
    optimizer: Optimizer,
    mode: str = "min",
    factor: float = 0.1,
    patience: int = 10,
    min_delta: float = 1e-4,
    min_lr: float = 0.0,
) -> ReduceLROnPlateau:
    """Keras' ReduceLROnPlateau.

    The rate falls at the `patience`-th epoch without a gain of `min_delta`. torch's own waits one
    epoch longer for the same number, and compares relatively by default.
    """
    if patience < 1:
        raise ValueError(f"patience is {patience}, expected at least 1")
    return ReduceLROnPlateau(
        optimizer,
        mode=mode,  # type: ignore[arg-type]
        factor=factor,
        patience=patience - 1,
        threshold=min_delta,
        threshold_mode="abs",
        min_lr=min_lr,
        eps=0.0,
    )


def plateau(
    optimizer: Optimizer,
    mode: str = "min",
    factor: float = 0.1,
    patience: int = 10,
    threshold: float = 1e-4,
    threshold_mode: str = "rel",
    cooldown: int = 0,
    min_lr: float = 0.0,
) -> ReduceLROnPlateau:
    """torch's ReduceLROnPlateau.

    The rate falls at the epoch after `patience` epochs without a gain, which is relative by
    default.
    """
    if patience < 0:
        raise ValueError(f"patience is {patience}, expected at least 0")
    return ReduceLROnPlateau(
        optimizer,
        mode,  # type: ignore[arg-type]
        factor,
        patience,
        threshold,
        threshold_mode,  # type: ignore[arg-type]
        cooldown,
        min_lr,
    )


def cosine(
    optimizer: Optimizer, length: Length, warmup_epochs: float = 0.0, min_factor: float = 0.0
) -> LRScheduler:
    """A linear rise to the rate over `warmup_epochs`, then half a cosine to `min_factor` of it.

    Source: I. Loshchilov, F. Hutter, SGDR, ICLR 2017, without restarts.
    """
    warmup = round(warmup_epochs * length.epoch)
    if not 0 <= warmup < length.steps:
        epochs = length.steps / length.epoch
        raise ValueError(f"warmup_epochs {warmup_epochs} is not inside the {epochs:g} epochs")
    if not 0 <= min_factor <= 1:
        raise ValueError(f"min_factor is {min_factor}, expected 0..1")

    def compute_factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        progress = min((step - warmup) / (length.steps - warmup), 1.0)
        return min_factor + (1 - min_factor) * (1 + math.cos(math.pi * progress)) / 2

    schedule: Any = LambdaLR(optimizer, compute_factor)
    # Part of the checkpoint, as OneCycleLR's is: see `check_length`.
    schedule.total_steps = length.steps
    return schedule


def one_cycle(
    optimizer: Optimizer,
    length: Length,
    pct_start: float = 0.3,
    div_factor: float = 25.0,
    final_div_factor: float = 1e4,
) -> OneCycleLR:
    """torch's OneCycleLR up to each group's rate and down; momentum stays as it is.

    Source: L. N. Smith, N. Topin, Super-convergence, 2018.
    """
    if div_factor <= 0 or final_div_factor <= 0:
        raise ValueError("div_factor and final_div_factor are expected above 0")
    return OneCycleLR(
        optimizer,
        [group["lr"] for group in optimizer.param_groups],
        length.steps,
        pct_start=pct_start,
        div_factor=div_factor,
        final_div_factor=final_div_factor,
        cycle_momentum=False,
    )


def polynomial(
    optimizer: Optimizer,
    length: Length,
    power: float = 0.9,
    min_lr: float = 0.0,
    warmup_steps: int = 0,
) -> LRScheduler:
    """A fall from the rate to `min_lr` as (1 - share of the training)^power.

    The first `warmup_steps` rise linearly to what the fall would have at their end. It is
    mmsegmentation's `poly`, with which networks for semantic segmentation are usually trained.
    """
    if power <= 0 or min_lr < 0:
        raise ValueError(f"power {power} is expected above 0, min_lr {min_lr} 0 or more")
    if not 0 <= warmup_steps < length.steps:
        raise ValueError(
            f"scheduler_args.warmup_steps {warmup_steps} is not inside the {length.steps} steps of "
            "the training; lower it, or train for longer"
        )
    lowest = min(group["lr"] for group in optimizer.param_groups)
    if min_lr > lowest:
        raise ValueError(f"min_lr {min_lr} is above the rate {lowest}")

    def compute_factor(step: int, rate: float) -> float:
        left = max(1 - step / length.steps, 0.0) ** power
        fallen = (min_lr + (rate - min_lr) * left) / rate
        return fallen * min((step + 1) / (warmup_steps + 1), 1.0)

    factors: list[Callable[[int], float]] = []
    for group in optimizer.param_groups:
        factors.append(partial(compute_factor, rate=group["lr"]))
    schedule: Any = LambdaLR(optimizer, factors)
    schedule.total_steps = length.steps  # see `cosine`
    return schedule


# Schedules that step with the optimiser and need the length of the training.
STEPWISE: dict[str, Callable[..., LRScheduler]] = {
    "cosine": cosine,
    "one_cycle": one_cycle,
    "polynomial": polynomial,
}
# All schedules; those not above step once an epoch on a watched value.
SCHEDULERS: dict[str, Callable[..., LRScheduler]] = {
    "keras_plateau": keras_plateau,
    "plateau": plateau,
    **STEPWISE,
}


def build_scheduler(
    name: str,
    optimizer: Optimizer,
    mode: str = "min",
    length: Length = ANY_LENGTH,
    /,
    **arguments: object,
) -> LRScheduler:
    """A schedule by name with its arguments.

    Args:
        name: of `SCHEDULERS`.
        optimizer: whose rates are changed.
        mode: whether the watched value is best low (`min`) or high (`max`).
        length: of the training, for those of `STEPWISE`.
        arguments: of the schedule.

    Raises:
        InputError: an unknown name or argument, or a value that the schedule refuses.
    """
    kind = choose("scheduler", name, SCHEDULERS)
    check_arguments(f"scheduler {name}", kind, arguments, given=2)
    second = length if name in STEPWISE else mode
    try:
        return kind(optimizer, second, **arguments)
    except (ValueError, TypeError) as error:
        raise InputError(f"scheduler {name} refuses {arguments}: {error}") from error


def check_length(schedule: LRScheduler, steps: float) -> None:
    """Refuse a resume with a schedule that was made for another length.

    Args:
        schedule: as the checkpoint has it.
        steps: of this training.

    Raises:
        InputError: a stepwise schedule has another number of steps.
    """
    planned = getattr(schedule, "total_steps", steps)
    if planned != steps:
        raise InputError(
            f"The checkpoint's schedule was made for {planned} optimiser steps, but this training "
            f"has {steps}. Resume with its trainer.max_epochs, trainer.accumulate_grad_batches, "
            "data.batch_size and number of devices."
        )
