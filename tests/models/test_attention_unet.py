"""The Attention UNet has the baseline's layers, constants and start."""

from collections import Counter

import pytest
from torch import nn

from ovseg.core.errors import InputError
from ovseg.models.attention_unet import AttentionUNet
from support import assert_glorot_uniform, assert_keras_norms


def test_gate_is_created_before_the_block():
    network = AttentionUNet(base_filters=2, num_layers=3)
    filters = []
    for name, module in network.keras_layers():
        if name == "conv2d":
            filters.append(module.out_channels)
    assert filters == [2, 2, 4, 4, 8, 8] + 5 * [4] + 5 * [2] + [1]
    assert network.gates[1].skip.conv.kernel_size == (1, 1)
    assert network.decoder[1].first.conv.in_channels == 12


def test_dropout_is_where_the_baseline_has_it():
    network = AttentionUNet(base_filters=2, num_layers=4, dropout_rate=0.05)
    rates = [module.p for module in network.modules() if isinstance(module, nn.Dropout)]
    assert Counter(rate for rate in rates if rate) == {0.05: 10}


def test_normalisation_has_keras_constants():
    assert_keras_norms(AttentionUNet(base_filters=4))


def test_weights_start_glorot_uniform():
    network = AttentionUNet(base_filters=16, num_layers=4)
    convolutions = []
    for _, module in network.keras_layers():
        if isinstance(module, nn.Conv2d):
            assert not module.bias.any()
            convolutions.append(module)
    assert_glorot_uniform(convolutions)


def test_pixels_are_scaled_as_in_the_baseline():
    assert AttentionUNet(base_filters=4).scale.factor.item() == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"classes": 0}, "attention_unet: classes is 0"),
        ({"base_filters": 0}, "attention_unet: base_filters is 0"),
        ({"num_layers": 0}, "attention_unet: num_layers is 0, expected 1..10"),
        ({"dropout_rate": 1.0}, "attention_unet: dropout_rate is 1.0"),
    ],
)
def test_settings_that_give_no_network_are_errors(settings, message):
    with pytest.raises(InputError, match=message):
        AttentionUNet(**settings)
