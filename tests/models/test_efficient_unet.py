"""The EfficientUNet has the baseline's layers, constants and start."""

import pytest
import torch
from torch import nn

from ovseg.baseline.keras_weights import keras_targets
from ovseg.core.errors import InputError
from ovseg.models.efficient_unet import EfficientNetEncoder, EfficientUNet


@pytest.mark.parametrize(
    ("settings", "count"),
    [
        ({}, 6_292_804),
        ({"efficientnet": "B1"}, 7_246_552),
        ({"efficientnet": "B3", "classes": 3}, 11_789_314),
        ({"efficientnet": "B4"}, 19_044_624),
    ],
)
def test_there_are_as_many_numbers_as_keras_counts(settings, count):
    with torch.device("meta"):
        network = EfficientUNet(**settings)
    found = 0
    for _, module in network.keras_layers():
        found += sum(target.tensor.numel() for target in keras_targets(module))
    assert found == count


def test_encoder_ends_in_block_7a_and_drops_as_if_it_did_not():
    encoder = EfficientUNet(efficientnet="B1").encoder
    assert list(encoder.blocks)[-1] == "block7a"
    # 23 blocks with 7b, of which block2b is the fourth, number 3.
    assert encoder.blocks["block2b"].drop_path.drop_prob == pytest.approx(0.2 * 3 / 23)
    assert encoder.channels == [16, 24, 40, 112, 320]


def test_skips_are_branches_before_their_shortcut():
    encoder = EfficientUNet().encoder.eval()
    image = torch.randint(0, 256, (1, 3, 32, 32)).float()
    with torch.no_grad():
        maps = encoder(image)
        nn.init.zeros_(encoder.blocks["block3b"].bn3.weight)
        silenced = encoder(image)
    assert torch.equal(maps[1], silenced[1])
    assert not silenced[2].any()
    assert silenced[3].any()
    assert not torch.equal(maps[3], silenced[3])


def test_normalisation_divides_by_the_deviation_and_by_imagenets_root():
    encoder = EfficientNetEncoder("B0", 0.2, imagenet_rescaling=True)
    encoder.normalization.mean.copy_(torch.tensor([0.5, 0.0, 0.0]))
    encoder.normalization.variance.copy_(torch.tensor([4.0, 1.0, 0.0]))
    image = torch.tensor([255.0, 51.0, 0.0]).view(1, 3, 1, 1)
    scaled = encoder.imagenet_rescaling(encoder.normalization(encoder.rescaling(image)))
    assert scaled.flatten().tolist() == pytest.approx([0.25 / 0.229**0.5, 0.2 / 0.224**0.5, 0.0])


def test_every_normalisation_has_keras_constants():
    norms = [m for m in EfficientUNet().modules() if isinstance(m, nn.BatchNorm2d)]
    assert {(norm.eps, norm.momentum) for norm in norms} == {(1e-3, 0.01)}


def test_encoder_weights_start_as_in_keras():
    block = EfficientUNet().encoder.blocks["block7a"]
    assert block.conv_pw.weight.std().item() == pytest.approx((2 / 1152) ** 0.5, rel=0.01)
    assert block.conv_dw.weight.std().item() == pytest.approx((2 / 9) ** 0.5, rel=0.03)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"classes": 0}, "efficient_unet: classes is 0"),
        ({"efficientnet": "B8"}, "Unknown efficientnet 'B8'. Choose one of: B0, B1, "),
        ({"drop_connect_rate": 1.0}, "drop_connect_rate is 1.0, expected 0 to below 1"),
    ],
)
def test_settings_that_give_no_network_are_errors(settings, message):
    with pytest.raises(InputError, match=message):
        EfficientUNet(**settings)
