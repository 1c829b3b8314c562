"""The UNet 3+ has the baseline's layers, constants and start."""

from collections import Counter

import pytest
import torch
from torch import nn

from ovseg.core.errors import InputError
from ovseg.models.unet3plus import UNet3Plus
from support import assert_keras_norms


def test_network_is_five_levels_deep_and_num_layers_wide():
    network = UNet3Plus(base_filters=2, num_layers=7)
    filters = []
    for name, module in network.keras_layers():
        if name == "conv2d":
            filters.append(module.out_channels)
    encoder = [2, 2, 4, 4, 8, 8, 16, 16, 32, 32]
    assert filters == encoder + 4 * [2, 2, 2, 2, 2, 14] + [1]
    sources = []
    for node in network.decoder:
        sources.append([branch.conv.in_channels for branch in node.branches])
    assert sources == [
        [2, 14, 14, 14, 32],
        [2, 4, 14, 14, 32],
        [2, 4, 8, 14, 32],
        [2, 4, 8, 16, 32],
    ]


def test_dropout_is_where_the_baseline_has_it():
    network = UNet3Plus(base_filters=2, dropout_rate=0.05)
    rates = [round(m.p, 3) for m in network.modules() if isinstance(m, nn.Dropout)]
    assert Counter(rate for rate in rates if rate) == {0.05: 30, 0.1: 5}


def test_dropout_follows_the_output_convolution():
    network = UNet3Plus(base_filters=2, dropout_rate=0.05).eval()
    network.dropout.train()
    logits = network(torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8))
    assert 0.02 < (logits == 0).float().mean() < 0.1


def test_normalisation_has_keras_constants():
    assert_keras_norms(UNet3Plus(base_filters=4))


def test_weights_start_he_normal_even_at_the_output():
    network = UNet3Plus(base_filters=16)
    for conv in (network.encoder[3].second.conv, network.decoder[0].merge.conv, network.head):
        std = (2 / conv.weight[0].numel()) ** 0.5
        assert conv.weight.std().item() == pytest.approx(std, rel=0.1)


def test_pixels_are_scaled_as_in_the_baseline():
    assert UNet3Plus(base_filters=4).scale.factor.item() == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"classes": 0}, "unet3plus: classes is 0"),
        ({"base_filters": 0}, "unet3plus: base_filters is 0"),
        ({"num_layers": 4}, "num_layers is 4, expected at least 5: the depth is fixed"),
        ({"dropout_rate": 0.5}, "dropout_rate 0.5 makes 1 after every second convolution"),
    ],
)
def test_settings_that_give_no_network_are_errors(settings, message):
    with pytest.raises(InputError, match=message):
        UNet3Plus(**settings)
