"""Activations by name and Keras' initialisation."""

import pytest
import torch

from ovseg.models.layers import ACTIVATIONS, build_activation, init_he_normal_, pad_to_stride


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
