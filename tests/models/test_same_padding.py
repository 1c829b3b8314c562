"""Fixed padding gives the numbers of padding that looks at the size."""

import pytest
import torch
from timm.layers import Conv2dSame
from torch import nn

from ovseg.models import build_model
from ovseg.models.same_padding import fix_same_padding


@pytest.mark.parametrize("kernel", [1, 2, 3, 5])
@pytest.mark.parametrize("dilation", [1, 2])
def test_layer_of_stride_2_is_equal_on_even_sizes(kernel, dilation):
    layer = Conv2dSame(3, 4, kernel, stride=2, dilation=dilation)
    fixed = fix_same_padding(nn.Sequential(layer))
    for size in [(8, 8), (10, 6), (2, 4)]:
        features = torch.randn(2, 3, *size)
        assert torch.equal(fixed(features), layer(features))


@pytest.mark.parametrize("size", [(64, 64), (50, 75)])
def test_network_is_equal_to_the_bit(size):
    network = build_model(
        "smp",
        architecture="unet",
        encoder_name="tu-tf_efficientnet_lite0",
        head_stride=4,
        decoder_args={"decoder_channels": [16, 8, 8, 8, 8]},
    ).eval()
    fixed = fix_same_padding(network)
    image = torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8)
    with torch.inference_mode():
        assert torch.equal(fixed(image), network(image))
    assert any(isinstance(layer, Conv2dSame) for layer in network.modules())
    assert not any(isinstance(layer, Conv2dSame) for layer in fixed.modules())


def test_network_without_such_layers_is_returned_itself():
    network = nn.Sequential(nn.Conv2d(3, 4, 3))
    assert fix_same_padding(network) is network
