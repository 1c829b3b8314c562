"""Optimisers and schedules by name, Keras' own arithmetic among them."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.optim.lr_scheduler import ReduceLROnPlateau

from ovseg.errors import InputError, check_arguments, choose


class KerasAdam(torch.optim.Adam):
    """Adam as Keras computes it: epsilon is added before the bias correction.

    Keras' step is lr sqrt(1 - b2^t) / (1 - b1^t) m / (sqrt(v) + eps). It is torch's with eps / sqrt(1 - b2^t) in place
    of eps, so torch's own (fused) kernels do the work. With torch's rule eight steps of the baseline's small network
    end 0.03 away in probability.

    Args:
        params: as torch's Adam.
        lr: learning rate.
        betas: as torch's Adam.
        eps: Keras' epsilon.
        fused: torch's one-kernel implementation.
    """

    def __init__(
        self,
        params: Iterable,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-7,
        fused: bool = True,
    ):
        super().__init__(params, lr=lr, betas=tuple(betas), eps=eps, fused=fused)
        self._step_supports_amp_scaling = False  # or Lightning refuses to clip under mixed precision

    def step(self, closure: Callable | None = None) -> Any:
        """One step; the closure, where given, computes the gradients first, as in torch."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        keras_eps = [group["eps"] for group in self.param_groups]
        for group in self.param_groups:
            states = (self.state[p] for p in group["params"] if p in self.state)
            done = next((float(state["step"]) for state in states if "step" in state), 0.0)
            group["eps"] /= (1 - group["betas"][1] ** (done + 1)) ** 0.5
        try:
            super().step()
        finally:
            for group, eps in zip(self.param_groups, keras_eps, strict=True):
                group["eps"] = eps
        return loss


OPTIMIZERS: dict[str, Callable] = {
    "keras_adam": KerasAdam,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "sgd": torch.optim.SGD,
}


def build_optimizer(name: str, params: Iterable, **arguments: Any) -> torch.optim.Optimizer:
    """An optimiser by name; its arguments are those of its constructor (`lr`, ...).

    Raises:
        InputError: unknown name or argument, or a value that the optimiser refuses.
    """
    kind = choose("optimizer", name, OPTIMIZERS)
    check_arguments(f"optimizer {name}", kind, arguments, given=1)
    try:
        return kind(params, **arguments)
    except (ValueError, TypeError) as error:
        raise InputError(f"optimizer {name} refuses {arguments}: {error}") from error


def keras_plateau(
    optimizer: torch.optim.Optimizer,
    factor: float = 0.1,
    patience: int = 10,
    min_delta: float = 1e-4,
    min_lr: float = 0.0,
) -> ReduceLROnPlateau:
    """Keras' ReduceLROnPlateau: the rate falls at the `patience`-th epoch without a gain of `min_delta`.

    torch's waits one epoch longer for the same number, and compares relatively by default.
    """
    if patience < 1:
        raise ValueError(f"patience is {patience}, expected at least 1")
    return ReduceLROnPlateau(
        optimizer,
        mode="min",
        factor=factor,
        patience=patience - 1,
        threshold=min_delta,
        threshold_mode="abs",
        min_lr=min_lr,
        eps=0.0,
    )


SCHEDULERS: dict[str, Callable] = {"keras_plateau": keras_plateau}


def build_scheduler(name: str, optimizer: torch.optim.Optimizer, **arguments: Any) -> ReduceLROnPlateau:
    """A schedule by name with its arguments, stepped once an epoch on the monitored value.

    Raises:
        InputError: unknown name or argument, or a value that the schedule refuses.
    """
    kind = choose("scheduler", name, SCHEDULERS)
    check_arguments(f"scheduler {name}", kind, arguments, given=1)
    try:
        return kind(optimizer, **arguments)
    except (ValueError, TypeError) as error:
        raise InputError(f"scheduler {name} refuses {arguments}: {error}") from error
