"""Attention UNet, MultiResUNet and UNet 3+ compute what the TensorFlow baseline computes with the same weights."""

from collections import Counter

import pytest
import torch
from torch import nn

from ovseg.baseline.keras_weights import keras_targets
from ovseg.core.errors import InputError
from ovseg.models.attention_unet import AttentionUNet
from ovseg.models.multires_unet import MultiResUNet, multires_filters
from ovseg.models.unet3plus import UNet3Plus

SETTINGS = [
    (AttentionUNet, {"base_filters": 3, "num_layers": 1}),
    (AttentionUNet, {"base_filters": 3, "num_layers": 3, "dropout_rate": 0.2}),
    (MultiResUNet, {"base_filters": 4, "num_layers": 1}),
    (MultiResUNet, {"base_filters": 5, "num_layers": 3}),
    (UNet3Plus, {"base_filters": 2}),
    (UNet3Plus, {"base_filters": 3, "num_layers": 6, "dropout_rate": 0.1}),
]
every_setting = pytest.mark.parametrize(
    ("architecture", "settings"),
    SETTINGS,
    ids=[f"{a.__name__}-{s.get('num_layers', 5)}" for a, s in SETTINGS],
)


def pixels(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8)


@every_setting
@pytest.mark.parametrize(("classes", "height", "width"), [(1, 64, 32), (9, 33, 50), (2, 1, 17)])
def test_logits_have_the_size_of_the_image(architecture, settings, classes, height, width):
    network, image = architecture(classes=classes, **settings).eval(), pixels(2, 3, height, width)
    logits = network(image)
    assert logits.shape == (2, classes, height, width) and torch.isfinite(logits).all()
    assert torch.equal(logits, network(image.float()))


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
    weights = [
        *network.parameters(),
        *(b for n, b in network.named_buffers() if n.endswith(("_mean", "_var"))),
    ]
    assert Counter(map(id, targets)) == Counter(map(id, weights))


def out_channels(network: nn.Module, stem: str = "conv2d") -> list[int]:
    return [module.out_channels for name, module in network.keras_layers() if name == stem]


def test_attention_unet_creates_the_gate_before_the_block():
    network = AttentionUNet(base_filters=2, num_layers=3)
    assert out_channels(network) == [2, 2, 4, 4, 8, 8] + 5 * [4] + 5 * [2] + [1]
    assert [network.gates[1].skip.conv.kernel_size, network.decoder[1].first.conv.in_channels] == [
        (1, 1),
        12,
    ]


def test_multires_filters_are_truncated_as_in_the_baseline():
    assert [multires_filters(count) for count in (4, 6, 8, 16, 32)] == [
        (1, 2, 3),
        (1, 3, 5),
        (2, 4, 6),
        (4, 8, 13),
        (8, 17, 26),
    ]


def test_multires_unet_creates_longer_paths_at_higher_levels():
    network = MultiResUNet(base_filters=4, num_layers=3)
    top, middle, bridge = [1, 2, 3, 6], [2, 4, 6, 12], [4, 8, 13, 25]
    assert out_channels(network) == top + 6 * [4] + middle + 4 * [8] + bridge + middle + top + [1]
    assert out_channels(network, "conv2d_transpose") == [8, 4]


def test_unet3plus_is_five_levels_deep_and_num_layers_wide():
    network = UNet3Plus(base_filters=2, num_layers=7)
    encoder = [2, 2, 4, 4, 8, 8, 16, 16, 32, 32]
    assert out_channels(network) == encoder + 4 * [2, 2, 2, 2, 2, 14] + [1]
    sources = [[branch.conv.in_channels for branch in node.branches] for node in network.decoder]
    assert sources == [
        [2, 14, 14, 14, 32],
        [2, 4, 14, 14, 32],
        [2, 4, 8, 14, 32],
        [2, 4, 8, 16, 32],
    ]


def test_dropout_stands_where_the_baseline_has_it():
    def rates(network):
        return Counter(
            round(m.p, 3) for m in network.modules() if isinstance(m, nn.Dropout) and m.p
        )

    assert rates(AttentionUNet(base_filters=2, num_layers=4, dropout_rate=0.05)) == {0.05: 10}
    assert rates(MultiResUNet(base_filters=4, num_layers=4)) == {}
    network = UNet3Plus(base_filters=2, dropout_rate=0.05)
    assert rates(network) == {0.05: 30, 0.1: 5}
    network.eval().dropout.train()
    logits = network(pixels(1, 3, 64, 64))
    assert 0.02 < (logits == 0).float().mean() < 0.1


def test_normalisation_has_keras_constants():
    for architecture in (AttentionUNet, MultiResUNet, UNet3Plus):
        norms = [m for m in architecture(base_filters=4).modules() if isinstance(m, nn.BatchNorm2d)]
        assert {(norm.eps, norm.momentum) for norm in norms} == {(1e-3, 0.01)}


@pytest.mark.parametrize("architecture", [AttentionUNet, MultiResUNet])
def test_weights_start_glorot_uniform(architecture):
    network = architecture(base_filters=16, num_layers=4)
    for _, module in network.keras_layers():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d) and module.weight.numel() > 5000:
            area = module.kernel_size[0] ** 2
            limit = (6 / (area * (module.in_channels + module.out_channels))) ** 0.5
            assert module.weight.abs().max().item() == pytest.approx(limit, rel=0.01)
        assert getattr(module, "bias", None) is None or not module.bias.any()


def test_unet3plus_starts_he_normal_even_at_the_output():
    network = UNet3Plus(base_filters=16)
    for conv in (network.encoder[3].second.conv, network.decoder[0].merge.conv, network.head):
        assert conv.weight.std().item() == pytest.approx(
            (2 / conv.weight[0].numel()) ** 0.5, rel=0.1
        )


@pytest.mark.parametrize(
    ("architecture", "scale"), [(AttentionUNet, 1.0), (MultiResUNet, 1 / 255), (UNet3Plus, 1.0)]
)
def test_pixels_are_scaled_as_in_the_baseline(architecture, scale):
    assert architecture(base_filters=4).scale.factor.item() == pytest.approx(scale)
    assert architecture(base_filters=4, input_scale=0.5).scale.factor.item() == 0.5


@pytest.mark.parametrize(
    ("architecture", "settings", "message"),
    [
        (AttentionUNet, {"classes": 0}, "attention_unet: classes is 0"),
        (AttentionUNet, {"base_filters": 0}, "attention_unet: base_filters is 0"),
        (AttentionUNet, {"num_layers": 0}, "attention_unet: num_layers is 0, expected 1..10"),
        (AttentionUNet, {"dropout_rate": 1.0}, "attention_unet: dropout_rate is 1.0"),
        (MultiResUNet, {"classes": 0}, "multires_unet: classes is 0"),
        (
            MultiResUNet,
            {"base_filters": 3},
            "multires_unet: base_filters is 3, expected at least 4",
        ),
        (MultiResUNet, {"num_layers": 11}, "multires_unet: num_layers is 11, expected 1..10"),
        (UNet3Plus, {"classes": 0}, "unet3plus: classes is 0"),
        (UNet3Plus, {"base_filters": 0}, "unet3plus: base_filters is 0"),
        (
            UNet3Plus,
            {"num_layers": 4},
            "unet3plus: num_layers is 4, expected at least 5: the depth is fixed",
        ),
        (
            UNet3Plus,
            {"dropout_rate": 0.5},
            "unet3plus: dropout_rate 0.5 makes 1 after every second convolution",
        ),
    ],
)
def test_settings_that_give_no_network_are_errors(architecture, settings, message):
    with pytest.raises(InputError, match=message):
        architecture(**settings)
