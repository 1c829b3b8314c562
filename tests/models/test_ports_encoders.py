"""EfficientUNet and DeepLabV3+ compute what the TensorFlow baseline computes with the same weights."""

from collections import Counter

import pytest
import torch
from torch import nn

from ovseg.baseline.keras_weights import keras_targets
from ovseg.core.errors import InputError
from ovseg.models.deeplabv3plus import DeepLabV3Plus
from ovseg.models.efficient_unet import EfficientNetEncoder, EfficientUNet

SETTINGS = [
    (EfficientUNet, {"drop_connect_rate": 0.0}),
    (EfficientUNet, {"efficientnet": "B1", "drop_connect_rate": 0.0}),
    (DeepLabV3Plus, {}),
]
every_setting = pytest.mark.parametrize(
    ("architecture", "settings"), SETTINGS, ids=["B0", "B1", "DeepLabV3Plus"]
)


def pixels(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8)


@every_setting
@pytest.mark.parametrize(("classes", "height", "width"), [(1, 64, 96), (9, 33, 50), (2, 1, 17)])
def test_logits_have_the_size_of_the_image(architecture, settings, classes, height, width):
    network, image = architecture(classes=classes, **settings).eval(), pixels(1, 3, height, width)
    with torch.no_grad():
        logits = network(image)
        assert torch.equal(logits, network(image.float()))
    assert logits.shape == (1, classes, height, width) and torch.isfinite(logits).all()


@every_setting
def test_every_parameter_gets_a_gradient(architecture, settings):
    network = architecture(**settings)
    network(pixels(2, 3, 48, 64)).square().mean().backward()
    assert [
        name
        for name, p in network.named_parameters()
        if p.grad is None or not p.grad.abs().sum() > 0
    ] == []


@every_setting
def test_keras_layers_cover_every_weight_once(architecture, settings):
    network = architecture(**settings)
    targets = [
        target.tensor for _, module in network.keras_layers() for target in keras_targets(module)
    ]
    ends = ("_mean", "_var", ".mean", ".variance", ".count")
    weights = [
        *network.parameters(),
        *(b for name, b in network.named_buffers() if name.endswith(ends)),
    ]
    assert Counter(map(id, targets)) == Counter(map(id, weights))


@every_setting
def test_every_normalisation_has_keras_constants(architecture, settings):
    norms = [
        module
        for module in architecture(**settings).modules()
        if isinstance(module, nn.BatchNorm2d)
    ]
    assert {(norm.eps, norm.momentum) for norm in norms} <= {(1e-3, 0.01), (1.001e-5, 0.01)}


@pytest.mark.parametrize(
    ("architecture", "settings", "count"),
    [
        (EfficientUNet, {}, 6_292_804),
        (EfficientUNet, {"efficientnet": "B1"}, 7_246_552),
        (EfficientUNet, {"efficientnet": "B3", "classes": 3}, 11_789_314),
        (EfficientUNet, {"efficientnet": "B4"}, 19_044_624),
        (DeepLabV3Plus, {}, 11_852_353),
    ],
)
def test_as_many_numbers_as_keras_counts(architecture, settings, count):
    with torch.device("meta"):
        network = architecture(**settings)
    targets = [target for _, module in network.keras_layers() for target in keras_targets(module)]
    assert sum(target.tensor.numel() for target in targets) == count


def test_the_encoder_ends_in_block_7a_and_drops_as_if_it_did_not():
    encoder = EfficientUNet(efficientnet="B1").encoder
    assert list(encoder.blocks)[-1] == "block7a" and "block7b" not in encoder.blocks
    assert encoder.blocks["block2b"].drop_path.drop_prob == pytest.approx(
        0.2 * 3 / 23
    )  # 23 blocks with 7b
    assert encoder.channels == [16, 24, 40, 112, 320]


def test_skips_are_branches_before_their_shortcut():
    encoder, image = EfficientUNet().encoder.eval(), pixels(1, 3, 32, 32).float()
    with torch.no_grad():
        maps = encoder(image)
        nn.init.zeros_(encoder.blocks["block3b"].bn3.weight)
        silenced = encoder(image)
    assert torch.equal(maps[1], silenced[1]) and not silenced[2].any()
    assert not torch.equal(maps[3], silenced[3]) and silenced[3].any()


def test_normalisation_divides_by_the_deviation_and_by_imagenets_root():
    encoder = EfficientNetEncoder("B0", 0.2, imagenet_rescaling=True)
    encoder.normalization.mean.copy_(torch.tensor([0.5, 0.0, 0.0]))
    encoder.normalization.variance.copy_(torch.tensor([4.0, 1.0, 0.0]))
    image = torch.tensor([255.0, 51.0, 0.0]).view(1, 3, 1, 1)
    scaled = encoder.imagenet_rescaling(encoder.normalization(encoder.rescaling(image)))
    assert scaled.flatten().tolist() == pytest.approx([0.25 / 0.229**0.5, 0.2 / 0.224**0.5, 0.0])


def test_encoder_weights_start_as_in_keras():
    network = EfficientUNet()
    expand, depthwise = (
        network.encoder.blocks["block7a"].conv_pw.weight,
        network.encoder.blocks["block7a"].conv_dw.weight,
    )
    assert expand.std().item() == pytest.approx((2 / 1152) ** 0.5, rel=0.01)
    assert depthwise.std().item() == pytest.approx((2 / 9) ** 0.5, rel=0.03)


def test_deeplab_takes_its_stride_in_the_first_convolution_of_a_stack():
    blocks = DeepLabV3Plus().encoder.blocks
    strided = [name for name, block in blocks.items() if block.squeeze[0].stride == (2, 2)]
    assert strided == ["conv3_block1", "conv4_block1"] and list(blocks)[-1] == "conv4_block5"
    assert all(block.squeeze[3].stride == (1, 1) for block in blocks.values())


def test_deeplab_trains_on_one_image():
    network = DeepLabV3Plus().train()
    assert torch.isfinite(network(pixels(1, 3, 32, 48))).all()
    assert torch.isfinite(network.pyramid.pool.norm.running_var).all()


@pytest.mark.parametrize(
    ("architecture", "settings", "message"),
    [
        (EfficientUNet, {"classes": 0}, "efficient_unet: classes is 0"),
        (
            EfficientUNet,
            {"efficientnet": "B8"},
            "Unknown efficientnet 'B8'. Choose one of: B0, B1, ",
        ),
        (
            EfficientUNet,
            {"drop_connect_rate": 1.0},
            "drop_connect_rate is 1.0, expected 0 to below 1",
        ),
        (DeepLabV3Plus, {"classes": 0}, "deeplabv3plus: classes is 0"),
    ],
)
def test_settings_that_give_no_network_are_errors(architecture, settings, message):
    with pytest.raises(InputError, match=message):
        architecture(**settings)
