"""Optimisers by name, Keras' own arithmetic among them, and their groups of parameters."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from ovseg.core.errors import InputError
from ovseg.core.registry import check_arguments, choose


class KerasAdam(torch.optim.Adam):
    """Adam as Keras computes it: epsilon is added before the bias correction.

    Keras' step is lr sqrt(1 - b2^t) / (1 - b1^t) m / (sqrt(v) + eps). It is torch's step with eps /
    sqrt(1 - b2^t) instead of eps, so torch's own (fused) kernels compute it. With torch's rule
    eight steps of the baseline's small network end 0.03 away in probability.

    Args:
        params: as torch's Adam.
        lr: learning rate.
        betas: as torch's Adam.
        eps: Keras' epsilon.
        fused: torch's implementation in one kernel.
    """

    def __init__(
        self,
        params: Iterable,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-7,
        fused: bool = True,
    ):
        first, second = betas  # a list in a YAML file
        super().__init__(params, lr=lr, betas=(first, second), eps=eps, fused=fused)
        # A flag of torch's fused optimisers (checked with 2.14). With it Lightning refuses to clip
        # gradients under mixed precision, because such an optimiser would unscale them itself.
        self._step_supports_amp_scaling = False

    def step(self, closure: Callable | None = None) -> Any:
        """Do one step; the closure, where given, computes the gradients first, as in torch."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        keras_eps = [group["eps"] for group in self.param_groups]
        for group in self.param_groups:
            step = self._count_steps(group) + 1
            group["eps"] /= (1 - group["betas"][1] ** step) ** 0.5
        try:
            super().step()
        finally:
            for group, eps in zip(self.param_groups, keras_eps, strict=True):
                group["eps"] = eps
        return loss

    def _count_steps(self, group: dict[str, Any]) -> float:
        """How many steps the parameters of a group have done."""
        for parameter in group["params"]:
            state = self.state.get(parameter, {})
            if "step" in state:
                return float(state["step"])
        return 0.0


OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "keras_adam": KerasAdam,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "sgd": torch.optim.SGD,
}


def build_optimizer(name: str, params: Iterable, **arguments: Any) -> torch.optim.Optimizer:
    """An optimiser by name; its arguments are those of its constructor (`lr`, ...).

    Raises:
        InputError: an unknown name or argument, or a value that the optimiser refuses.
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
        encoder = getattr(owner, "encoder", None)
        if isinstance(encoder, nn.Module):
            return encoder
    return None


def optimize_network(
    network: nn.Module,
    name: str,
    arguments: dict[str, Any],
    encoder_lr_factor: float = 1.0,
    separate_encoder: bool = False,
) -> torch.optim.Optimizer:
    """An optimiser of a whole network.

    Weight decay is for the weights of layers. Norms and biases (one dimension or none) are left
    out, because pulling a norm's scale or an offset to 0 is no regularisation. Parameters that are
    not treated alike are in groups; without decay and with one learning rate there is one group.

    timm's `param_groups_weight_decay` makes the same two groups, but in another order: the states
    of optimisers in earlier checkpoints would be those of other parameters.

    Args:
        network: what to train.
        name: see `OPTIMIZERS`.
        arguments: of the optimiser.
        encoder_lr_factor: the encoder's learning rate is `lr` times this.
        separate_encoder: the encoder has groups of its own even with a factor of 1, because it is
            not always trained.

    Raises:
        InputError: as `build_optimizer`; or the factor is not above 0, or the network has no
            encoder.
    """
    optimizer = build_optimizer(name, network.parameters(), **arguments)
    if encoder_lr_factor <= 0:
        raise InputError(f"model.encoder_lr_factor is {encoder_lr_factor}, expected above 0.")
    of_encoder: set[int] = set()
    if separate_encoder or encoder_lr_factor != 1:
        encoder = find_encoder(network)
        if encoder is None:
            raise InputError(
                "model.encoder_lr_factor and model.freeze_encoder_epochs are for networks with an "
                f"encoder, which {type(network).__name__} does not have. Leave them at 1 and 0."
            )
        of_encoder = {id(parameter) for parameter in encoder.parameters()}

    decays = bool(optimizer.defaults.get("weight_decay", 0.0))
    # (in the encoder, without decay) -> parameters
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for parameter in network.parameters():
        key = (id(parameter) in of_encoder, decays and parameter.ndim <= 1)
        groups.setdefault(key, []).append(parameter)
    if len(groups) == 1:
        return optimizer

    settings = []
    for key in sorted(groups):
        in_encoder, without_decay = key
        group: dict[str, Any] = {"params": groups[key], "lr": optimizer.defaults["lr"]}
        if in_encoder:
            group["lr"] *= encoder_lr_factor
        if without_decay:
            group["weight_decay"] = 0.0
        settings.append(group)
    return build_optimizer(name, settings, **arguments)
