"""Sharp UNet: its fixed filter, the baseline's bug, and the network that was intended."""

import pytest
import torch

from ovseg.core.errors import InputError
from ovseg.models.layers import SameConv2d
from ovseg.models.sharp_unet import ConvPair, Sharpening, SharpUNet

SMALL = {"filters": [4, 6], "max_filter": 8}


def test_sharpening_is_eight_times_a_pixel_minus_its_neighbours():
    image = torch.zeros(1, 2, 3, 3)
    image[0, 0, 1, 1] = 1.0
    image[0, 1] = 1.0
    sharp = Sharpening(2)(image)
    assert sharp[0, 0].tolist() == [[-1, -1, -1], [-1, 8, -1], [-1, -1, -1]]
    # Zeros lie around the picture: a corner of ones has 3 neighbours, an edge 5, the middle 8.
    assert sharp[0, 1].tolist() == [[5, 3, 5], [3, 0, 3], [5, 3, 5]]


def test_decoder_is_convolved_on_its_top_level_only():
    network = SharpUNet(**SMALL)
    assert [isinstance(block, ConvPair) for block in network.decoder] == [False, True]
    assert network.upsample[1].in_channels == 12  # 6 of the level below, 6 of its skip connection


def test_full_decoder_is_convolved_on_every_level():
    network = SharpUNet(**SMALL, full_decoder=True)
    assert [isinstance(block, ConvPair) for block in network.decoder] == [True, True]
    assert network.upsample[1].in_channels == 6


def test_filter_is_no_parameter():
    network = SharpUNet(**SMALL)
    assert not any("sharpen" in name for name, _ in network.named_parameters())


def test_even_kernel_has_its_one_more_zero_at_the_end():
    conv = SameConv2d(1, 1, (1, 2))
    torch.nn.init.ones_(conv.weight)
    torch.nn.init.zeros_(conv.bias)
    assert conv(torch.tensor([[[[1.0, 2.0, 4.0]]]])).tolist() == [[[[3.0, 6.0, 4.0]]]]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"filters": []}, "filters is .*expected a list of numbers"),
        ({"filters": [4, 0]}, "filters is .*at least 1"),
        ({"max_filter": 0}, "max_filter is 0"),
        ({"base_ksize": (3, 3, 3)}, "base_ksize is .*expected one number or two"),
        ({"dilation": 0}, "dilation is 0"),
    ],
)
def test_wrong_values_are_errors(settings, message):
    with pytest.raises(InputError, match=f"sharp_unet: {message}"):
        SharpUNet(**settings)
