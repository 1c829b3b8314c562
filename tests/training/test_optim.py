import numpy as np
import pytest
import torch

from ovseg.core.errors import InputError
from ovseg.models import build_model
from ovseg.training.optim import OPTIMIZERS, KerasAdam, build_optimizer, optimize_network


def keras_steps(
    weight: np.ndarray, gradients: list[np.ndarray], lr: float, eps: float
) -> np.ndarray:
    """Keras' Adam written out: m, v, and a rate that carries both corrections."""
    m, v = np.zeros_like(weight), np.zeros_like(weight)
    for t, gradient in enumerate(gradients, 1):
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
        weight = weight - lr * np.sqrt(1 - 0.999**t) / (1 - 0.9**t) * m / (np.sqrt(v) + eps)
    return weight


@pytest.mark.parametrize("fused", [True, False])
def test_keras_adam_is_keras_arithmetic(fused):
    rng = np.random.default_rng(0)
    start, gradients = (
        rng.normal(size=7),
        [rng.normal(size=7) * 10.0 ** rng.integers(-8, 0, 7) for _ in range(8)],
    )
    weight = torch.nn.Parameter(torch.tensor(start))
    optimizer = KerasAdam([weight], lr=0.01, eps=1e-7, fused=fused)
    for gradient in gradients:
        weight.grad = torch.tensor(gradient)
        optimizer.step()
    assert np.allclose(
        weight.detach().numpy(), keras_steps(start, gradients, 0.01, 1e-7), atol=1e-12
    )
    assert optimizer.param_groups[0]["eps"] == 1e-7


def test_torchs_adam_differs_where_gradients_are_small():
    weights = [torch.nn.Parameter(torch.ones(1)) for _ in range(2)]
    for kind, weight in zip((KerasAdam, torch.optim.Adam), weights, strict=True):
        weight.grad = torch.full((1,), 1e-7)
        kind([weight], lr=0.1, eps=1e-7).step()
    assert (weights[0] - weights[1]).abs() > 0.01


def test_keras_adam_takes_a_closure():
    weight = torch.nn.Parameter(torch.ones(1))
    optimizer = KerasAdam([weight], lr=0.1)

    def closure():
        optimizer.zero_grad()
        loss = (weight**2).sum()
        loss.backward()
        return loss

    assert optimizer.step(closure) == 1 and weight.item() == pytest.approx(0.9, abs=1e-4)


def test_keras_adam_resumes():
    torch.manual_seed(1)
    gradients = torch.randn(6, 3)

    def run(pause: bool) -> torch.Tensor:
        weight = torch.nn.Parameter(torch.ones(3))
        optimizer = KerasAdam([weight], lr=0.1)
        for step, gradient in enumerate(gradients):
            if pause and step == 3:
                state, optimizer = optimizer.state_dict(), KerasAdam([weight], lr=0.1)
                optimizer.load_state_dict(state)
            weight.grad = gradient.clone()
            optimizer.step()
        return weight.detach()

    assert torch.equal(run(False), run(True))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_lowers_a_parabola(name):
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = build_optimizer(name, [weight], lr=0.05)
    for _ in range(50):
        optimizer.zero_grad()
        weight.square().sum().backward()
        optimizer.step()
    assert weight.square().sum() < 0.1


def test_mistakes_are_errors():
    weight = torch.nn.Parameter(torch.ones(1))
    with pytest.raises(InputError, match="Unknown optimizer 'adamax'. Choose one of: adam, "):
        build_optimizer("adamax", [weight])
    with pytest.raises(
        InputError, match="optimizer adam does not take speed. Its arguments are: lr, "
    ):
        build_optimizer("adam", [weight], speed=1)
    with pytest.raises(InputError, match="optimizer adam refuses"):
        build_optimizer("adam", [weight], lr=-1)


def rates(network: torch.nn.Module, *arguments, **more) -> dict[str, tuple[float, float]]:
    """(learning rate, weight decay) of every parameter."""
    groups = optimize_network(network, *arguments, **more).param_groups
    found = {
        id(p): (group["lr"], group.get("weight_decay", 0.0))
        for group in groups
        for p in group["params"]
    }
    assert len(found) == sum(len(group["params"]) for group in groups)
    return {name: found[id(parameter)] for name, parameter in network.named_parameters()}


def small_network() -> torch.nn.Module:
    return build_model("flexible_unet", base_filters=2, num_layers=2, normalization=True)


def test_one_group_where_all_parameters_are_treated_alike():
    network = small_network()
    for name, arguments in (
        ("keras_adam", {"lr": 0.1}),
        ("adam", {}),
        ("adamw", {"weight_decay": 0.0}),
        ("sgd", {}),
    ):
        groups = optimize_network(network, name, arguments).param_groups
        assert len(groups) == 1
        assert all(a is b for a, b in zip(groups[0]["params"], network.parameters(), strict=True))


@pytest.mark.parametrize(
    ("name", "arguments", "decay"),
    [
        ("adam", {"weight_decay": 0.1}, 0.1),
        ("adamw", {}, 0.01),
        ("sgd", {"weight_decay": 0.2}, 0.2),
    ],
)
def test_weight_decay_leaves_norms_and_biases_out(name, arguments, decay):
    network = small_network()
    sizes = {parameter: value.ndim for parameter, value in network.named_parameters()}
    for parameter, (lr, found) in rates(network, name, {"lr": 0.5, **arguments}).items():
        assert lr == 0.5 and found == (decay if sizes[parameter] == 4 else 0.0), parameter
    assert {1, 4} == set(sizes.values())


def test_encoder_has_a_rate_of_its_own():
    found = rates(small_network(), "keras_adam", {"lr": 0.5}, encoder_lr_factor=0.1)
    assert all(
        lr == pytest.approx(0.05 if name.startswith("encoder") else 0.5)
        for name, (lr, _) in found.items()
    )
    wrapped = build_model("smp", encoder_name="resnet18")
    found = rates(wrapped, "adamw", {"lr": 0.5}, encoder_lr_factor=0.1)
    assert all(
        (lr == 0.5) != name.startswith("network.encoder.") for name, (lr, _) in found.items()
    )
    assert {decay for _, decay in found.values()} == {0.0, 0.01}


def test_encoder_settings_that_make_no_sense_are_errors():
    with pytest.raises(InputError, match="model.encoder_lr_factor is 0, expected above 0"):
        optimize_network(small_network(), "adam", {}, encoder_lr_factor=0)
    with pytest.raises(
        InputError, match="are for networks with an encoder, which Linear does not have"
    ):
        optimize_network(torch.nn.Linear(1, 1), "adam", {}, encoder_lr_factor=0.1)
    with pytest.raises(InputError, match="are for networks with an encoder"):
        optimize_network(torch.nn.Linear(1, 1), "adam", {}, separate_encoder=True)
