"""A network with packed weights gives the same numbers to float rounding."""

import pytest
import torch
from torch import nn

from ovseg.inference.engines import arrange_for_inference
from ovseg.inference.packing import PackedConv2d, pack_weights
from ovseg.models import build_model

ARGUMENTS = {
    "flexible_unet": {"base_filters": 4, "num_layers": 3},
    "unet3plus": {"base_filters": 2},
    # Some of its layers pad by the size of the picture and are not packed.
    "smp": {
        "architecture": "unet",
        "encoder_name": "tu-tf_efficientnet_lite0",
        "encoder_weights": None,
    },
}


def make_network(arch="flexible_unet"):
    torch.manual_seed(0)
    return arrange_for_inference(build_model(arch, **ARGUMENTS[arch]), torch.device("cpu"))


def make_images(count=2, size=64):
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator)


def assert_same_numbers(found, expected):
    rounding = 1e-5 * expected.abs().max().item()
    torch.testing.assert_close(found, expected, rtol=0, atol=rounding)


def packed_layers(network):
    return [module for module in network.modules() if isinstance(module, PackedConv2d)]


@pytest.mark.parametrize("arch", list(ARGUMENTS))
def test_packed_network_gives_the_same_numbers(arch):
    network = make_network(arch)
    with torch.inference_mode():
        packed = pack_weights(network, make_images())
        assert packed_layers(packed)
        for images in (make_images(), make_images(count=1), make_images(count=3, size=96)):
            assert_same_numbers(packed(images), network(images))


def test_the_network_itself_is_left_alone():
    network = make_network()
    packed = pack_weights(network, make_images())
    assert packed_layers(network) == []
    assert packed.head.bias is network.head.bias
    # A transposed convolution is not packed, and its weights are in memory once.
    assert packed.upsample[0].weight is network.upsample[0].weight


def test_layers_that_are_not_plain_are_left_alone():
    class OwnConvolution(nn.Conv2d):
        pass

    network = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding="same"),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
        OwnConvolution(4, 4, 3),
        nn.Conv2d(4, 4, 3),
    ).eval()
    with torch.inference_mode():
        image = torch.rand(1, 3, 16, 16)
        packed = pack_weights(network, image)
        assert len(packed_layers(packed)) == 1
        assert_same_numbers(packed(image), network(image))


def test_autocast_is_left_alone():
    network = make_network()
    with torch.autocast("cpu", torch.bfloat16):
        assert pack_weights(network, make_images()) is network
