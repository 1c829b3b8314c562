"""Optimisers by name, Keras' own arithmetic among them, and what each of their groups of parameters gets."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from ovseg.core.errors import InputError
from ovseg.core.registry import check_arguments, choose


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
        self._step_supports_amp_scaling = (
            False  # or Lightning refuses to clip under mixed precision
        )

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


def find_encoder(network: nn.Module) -> nn.Module | None:
    """The encoder of a network, or of the network that it wraps; None where it has none."""
    for owner in (network, getattr(network, "network", None)):
        if isinstance(getattr(owner, "encoder", None), nn.Module):
            return owner.encoder
    return None


def optimize_network(
    network: nn.Module,
    name: str,
    arguments: dict[str, Any],
    encoder_lr_factor: float = 1.0,
    apart: bool = False,
) -> torch.optim.Optimizer:
    """An optimiser of a whole network, in groups where its parameters are not treated alike.

    Weight decay is for the weights of layers: norms and biases (one dimension or none) are left out, for pulling a
    norm's scale or an offset to 0 is no regularisation. Without decay and with one rate there is one group, as ever.

    Args:
        network: what to train.
        name: see `OPTIMIZERS`.
        arguments: of the optimiser.
        encoder_lr_factor: the encoder's learning rate is `lr` times this.
        apart: the encoder has groups of its own also at a factor of 1, for it does not always train.

    Raises:
        InputError: as `build_optimizer`, or a factor that no network or not this one can have.
    """
    optimizer, encoder = (
        build_optimizer(name, network.parameters(), **arguments),
        find_encoder(network),
    )
    if encoder_lr_factor <= 0:
        raise InputError(f"model.encoder_lr_factor is {encoder_lr_factor}, expected above 0.")
    apart = apart or encoder_lr_factor != 1
    if apart and encoder is None:
        raise InputError(
            "model.encoder_lr_factor and model.freeze_encoder_epochs are for networks with an encoder, which "
            f"{type(network).__name__} has not. Leave them at 1 and 0."
        )
    lr, decay = optimizer.defaults["lr"], optimizer.defaults.get("weight_decay", 0.0)
    inside = {id(parameter) for parameter in encoder.parameters()} if apart else set()
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for parameter in network.parameters():
        groups.setdefault(
            (id(parameter) in inside, bool(decay) and parameter.ndim <= 1), []
        ).append(parameter)
    if len(groups) == 1:
        return optimizer
    settings = [
        {"params": groups[key], "lr": lr * encoder_lr_factor if key[0] else lr}
        | ({"weight_decay": 0.0} if key[1] else {})
        for key in sorted(groups)
    ]
    return build_optimizer(name, settings, **arguments)
