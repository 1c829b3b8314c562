"""U2-Net: its blocks, its side outputs, its settings."""

import pytest
import torch

from ovseg.core.errors import InputError
from ovseg.models.u2net import ResidualUBlock, U2Net


def test_size_is_that_of_the_baseline():
    with torch.device("meta"):
        network = U2Net(base_filters=16, num_layers=6)
    assert sum(parameter.numel() for parameter in network.parameters()) == 48_982_289
    assert network.stride == 128


def test_logits_come_of_probabilities_of_side_outputs():
    network = U2Net(base_filters=4, num_layers=2, classes=2).eval()
    for side in network.sides:
        torch.nn.init.zeros_(side.weight)
    torch.nn.init.zeros_(network.head.bias)
    assert network.head.in_channels == 8  # two levels and two blocks below, of two classes
    logits = network(torch.zeros(1, 3, 8, 8))
    # Every side output is sigmoid(0) = 0.5.
    expected = network.head.weight.sum((1, 2, 3)) / 2
    assert torch.allclose(logits[0, :, 0, 0], expected)


def test_block_adds_what_it_starts_from():
    block = ResidualUBlock("block", 3, 1, 4, depth=2)
    torch.nn.init.zeros_(block.outlet.weight)
    torch.nn.init.zeros_(block.outlet.bias)
    image = torch.rand(1, 3, 8, 8)
    assert torch.equal(block(image), block.inlet(image))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"base_filters": 3}, "base_filters is 3, expected at least 4"),
        ({"num_layers": 0}, "num_layers is 0, expected 1..10"),
        ({"in_channels": 0}, "in_channels is 0"),
    ],
)
def test_wrong_values_are_errors(settings, message):
    with pytest.raises(InputError, match=f"u2net: {message}"):
        U2Net(**settings)
