import numpy as np
import pytest
import torch

from ovseg.errors import InputError
from ovseg.optim import OPTIMIZERS, KerasAdam, build_optimizer, build_scheduler, keras_plateau


def keras_steps(weight: np.ndarray, gradients: list[np.ndarray], lr: float, eps: float) -> np.ndarray:
    """Keras' Adam written out: m, v, and a rate that carries both corrections."""
    m, v = np.zeros_like(weight), np.zeros_like(weight)
    for t, gradient in enumerate(gradients, 1):
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
        weight = weight - lr * np.sqrt(1 - 0.999**t) / (1 - 0.9**t) * m / (np.sqrt(v) + eps)
    return weight


@pytest.mark.parametrize("fused", [True, False])
def test_keras_adam_is_keras_arithmetic(fused):
    rng = np.random.default_rng(0)
    start, gradients = rng.normal(size=7), [rng.normal(size=7) * 10.0 ** rng.integers(-8, 0, 7) for _ in range(8)]
    weight = torch.nn.Parameter(torch.tensor(start))
    optimizer = KerasAdam([weight], lr=0.01, eps=1e-7, fused=fused)
    for gradient in gradients:
        weight.grad = torch.tensor(gradient)
        optimizer.step()
    assert np.allclose(weight.detach().numpy(), keras_steps(start, gradients, 0.01, 1e-7), atol=1e-12)
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


def test_keras_plateau_falls_at_the_patience_th_bad_epoch():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0)
    schedule, rates = keras_plateau(optimizer, factor=0.4, patience=4), []
    for value in (1.0, 0.99995, 1.0, 1.0, 1.0, 1.0):  # the first gain is below min_delta
        schedule.step(value)
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates == [1, 1, 1, 1, 0.4, 0.4]


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
    with pytest.raises(InputError, match="optimizer adam does not take speed. Its arguments are: lr, "):
        build_optimizer("adam", [weight], speed=1)
    with pytest.raises(InputError, match="optimizer adam refuses"):
        build_optimizer("adam", [weight], lr=-1)
    optimizer = build_optimizer("adam", [weight])
    with pytest.raises(InputError, match="Unknown scheduler 'cliff'"):
        build_scheduler("cliff", optimizer)
    with pytest.raises(InputError, match="scheduler keras_plateau refuses"):
        build_scheduler("keras_plateau", optimizer, factor=2.0)
    with pytest.raises(InputError, match="scheduler keras_plateau does not take mode"):
        build_scheduler("keras_plateau", optimizer, mode="max")
