"""DS2Net's modules on numbers worked out by hand, and the paper's two networks."""

import math

import pytest
import torch
from torch import nn

from ovseg.core.errors import InputError
from ovseg.models import build_model
from ovseg.models.ds2net import DistinctSelection, UniversalSelection, channel_weights


def fill(layer: nn.Module, weight: float, bias: float = 0.0) -> None:
    nn.init.constant_(layer.weight, weight)
    nn.init.constant_(layer.bias, bias)


def test_selection_weighs_each_channel_of_the_two_maps_against_each_other():
    """The sum of means is 1 + 3 = 4; scores of 4 log 3 and 0 are weights of 81/82 and 1/82."""
    module = DistinctSelection(1, 1)
    fill(module.squeeze, 1.0)
    fill(module.excite[0], math.log(3))
    fill(module.excite[1], 0.0)
    source, target = module(torch.tensor([[[[0.0, 2.0]]]]), torch.tensor([[[[3.0, 3.0]]]]))
    assert source.flatten().tolist() == pytest.approx([0.0, 2 * 81 / 82])
    assert target.flatten().tolist() == pytest.approx([3 / 82, 3 / 82])


@pytest.mark.parametrize(("channels", "least", "hidden"), [(2048, 32, 256), (64, 8, 8), (8, 8, 8)])
def test_squeezed_width_is_an_eighth_but_not_below_the_least(channels, least, hidden):
    assert DistinctSelection(channels, least).squeeze.out_features == hidden


def test_channels_that_agree_least_with_the_key_weigh_most():
    """Two channels at one position: affinities 1 x (0, log 3) and 0 x (0, log 3)."""
    maps = torch.tensor([[[[1.0]], [[0.0]]]])
    key = torch.tensor([[[0.0, math.log(3)]]])  # (N, positions, C)
    weights = channel_weights(maps, key)
    assert weights.flatten().tolist() == pytest.approx([0.75, 0.25, 0.5, 0.5])


def test_universal_selection_mixes_channels_by_the_mean_of_both_weights():
    """With a key of zeros all affinities are 0, so every channel becomes the mean of channels."""
    module = UniversalSelection(2, 1)
    fill(module.key[0], 0.0)
    for project in module.project:
        fill(project[0], 0.0)
        project[0].weight.data[0, 0, 1, 1] = 1.0  # passes the first mixed channel on
    source = torch.tensor([[[[1.0]], [[3.0]]]])
    target = torch.tensor([[[[-2.0]], [[-4.0]]]])
    mixed_source, mixed_target = module(source, target)
    assert mixed_source.item() == pytest.approx(2.0)
    assert mixed_target.item() == 0.0  # a mean of -3, and ReLU


@pytest.mark.parametrize(
    ("settings", "stride", "channels", "levels", "widths"),
    [
        ({"head": "pspnet", "encoder_name": "resnet50"}, 8, 2048, ["5"], (512, 256)),
        (
            {"head": "segformer", "encoder_name": "mit_b2"},  # as wide as mit_b5
            32,
            512,
            ["2", "3", "4", "5"],
            (256, 64),
        ),
    ],
)
def test_defaults_are_the_papers_networks(settings, stride, channels, levels, widths):
    network = build_model("ds2net", **settings)
    head, hidden = widths
    assert (network.stride, network.map_channels) == (stride, channels)
    assert list(network.distinct) == levels
    assert network.distinct[levels[-1]].squeeze.out_features == hidden
    assert [part.classify.in_channels for part in network.heads] == [head, head]
    if settings["head"] == "segformer":
        assert network.universal.project[0][0].out_channels == 64
        assert network.heads[0].decoder.mlp_stage[0].linear.in_features == 576
    else:
        assert network.universal is None


def test_logits_are_the_mean_of_both_heads():
    network = build_model("ds2net", encoder_name="tu-lcnet_035", encoder_depth=3).eval()
    image = torch.randint(0, 256, (1, 3, 40, 33), dtype=torch.uint8)
    with torch.no_grad():
        source, target = network.decode(*network.encode(image), image)
        assert not torch.equal(source, target)
        assert torch.equal(network(image), (source + target) / 2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"head": "unet"}, "Unknown ds2net head 'unet'. Choose one of: pspnet, segformer"),
        ({"encoder_depth": 2}, "encoder_depth is 2, expected 3, 4 or 5"),
        ({"output_stride": 4}, "output_stride is 4, expected 8, 16 or 32"),
        ({"encoder_name": "resnet"}, "Unknown encoder 'resnet'"),
    ],
)
def test_settings_that_give_no_network_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        build_model("ds2net", **settings)
