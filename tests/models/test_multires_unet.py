"""The MultiResUNet has the baseline's layers, constants and start."""

import pytest
from torch import nn

from ovseg.core.errors import InputError
from ovseg.models.multires_unet import MultiResUNet, multires_filters
from support import assert_glorot_uniform, assert_keras_norms


def list_filters(network: nn.Module, kind: str) -> list[int]:
    return [module.out_channels for name, module in network.keras_layers() if name == kind]


@pytest.mark.parametrize(
    ("count", "filters"),
    [(4, (1, 2, 3)), (6, (1, 3, 5)), (8, (2, 4, 6)), (16, (4, 8, 13)), (32, (8, 17, 26))],
)
def test_filters_are_cut_as_in_the_baseline(count, filters):
    assert multires_filters(count) == filters


def test_paths_are_longer_at_higher_levels():
    network = MultiResUNet(base_filters=4, num_layers=3)
    top = [1, 2, 3, 6]
    middle = [2, 4, 6, 12]
    bridge = [4, 8, 13, 25]
    encoder = top + 6 * [4] + middle + 4 * [8] + bridge
    assert list_filters(network, "conv2d") == [*encoder, *middle, *top, 1]
    assert list_filters(network, "conv2d_transpose") == [8, 4]


def test_there_is_no_dropout():
    network = MultiResUNet(base_filters=4, num_layers=4)
    assert not any(module.p for module in network.modules() if isinstance(module, nn.Dropout))


def test_normalisation_has_keras_constants():
    assert_keras_norms(MultiResUNet(base_filters=4))


def test_weights_start_glorot_uniform():
    network = MultiResUNet(base_filters=16, num_layers=4)
    layers = [module for _, module in network.keras_layers()]
    assert_glorot_uniform(
        layer for layer in layers if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d)
    )


def test_pixels_are_scaled_as_in_the_baseline():
    assert MultiResUNet(base_filters=4).scale.factor.item() == pytest.approx(1 / 255)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"classes": 0}, "multires_unet: classes is 0"),
        ({"base_filters": 3}, "multires_unet: base_filters is 3, expected at least 4"),
        ({"num_layers": 11}, "multires_unet: num_layers is 11, expected 1..10"),
    ],
)
def test_settings_that_give_no_network_are_errors(settings, message):
    with pytest.raises(InputError, match=message):
        MultiResUNet(**settings)
