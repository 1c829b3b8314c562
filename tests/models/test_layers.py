"""Activations by name and Keras' initialisation."""

import pytest
import torch

from ovseg.models.layers import (
    ACTIVATIONS,
    FastDropout,
    build_activation,
    init_he_normal_,
    pad_to_stride,
)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_activation_is_finite(name):
    assert torch.isfinite(build_activation(name)(torch.linspace(-30, 30, 61))).all()


def test_he_normal_fan_in_counts_the_kernel():
    weight = torch.empty(64, 8, 5, 5)
    init_he_normal_(weight)
    assert weight.std().item() == pytest.approx((2 / 200) ** 0.5, rel=0.03)


def test_padding_is_black_below_and_to_the_right():
    padded = pad_to_stride(torch.ones(1, 3, 5, 8), 4)
    assert padded.shape == (1, 3, 8, 8)
    assert padded[..., :5, :].all()
    assert not padded[..., 5:, :].any()


# Dropout


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_dropout_zeroes_its_share_and_keeps_the_mean(memory_format):
    torch.manual_seed(0)
    features = torch.ones(2, 8, 64, 63).contiguous(memory_format=memory_format)
    dropped = FastDropout(0.2)(features)
    assert (dropped == 0).float().mean() == pytest.approx(0.2, abs=0.01)
    assert dropped.mean() == pytest.approx(1, abs=0.02)
    assert dropped.unique().tolist() == pytest.approx([0, 1.25], abs=1e-4)
    assert dropped.is_contiguous(memory_format=memory_format)


def test_dropout_is_a_function_of_the_seed():
    masks = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        masks.append(FastDropout(0.5)(torch.ones(1, 1, 31, 33)))
    assert torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0], masks[2])


def test_dropout_passes_the_gradient_where_it_keeps():
    features = torch.randn(1, 2, 16, 16, requires_grad=True)
    dropped = FastDropout(0.3)(features)
    dropped.sum().backward()
    assert torch.allclose(features.grad * features, dropped)


def test_neighbours_are_dropped_independently():
    torch.manual_seed(0)
    dropped = FastDropout(0.5)(torch.ones(2**20)) == 0
    for distance in (1, 2, 3, 4, 1000):
        both = (dropped[:-distance] & dropped[distance:]).float().mean()
        assert both == pytest.approx(0.25, abs=0.003)


def test_dropout_does_nothing_in_evaluation_and_at_zero():
    features = torch.randn(1, 1, 8, 8)
    assert FastDropout(0.5).eval()(features) is features
    assert torch.equal(FastDropout(0.0)(features), features)
