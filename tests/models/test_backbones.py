"""Backbones of TransUNet: as large as in Keras, their maps, and what of them trains."""

import pytest
import torch
from torch import nn

from ovseg.baseline.keras_weights import keras_targets
from ovseg.core.errors import InputError
from ovseg.models import build_model
from ovseg.models.backbones import BACKBONES, Backbone
from ovseg.models.resnet import ResNetV2Encoder
from ovseg.models.transunet import TransUNet

SMALL = {
    "filter_num": [4, 6, 8],
    "embed_dim": 4,
    "num_mlp": 6,
    "num_heads": 2,
    "num_transformer": 1,
    "image_size": 32,
}
# One of every family, and the numbers that Keras counts in it without its top.
SIZES = {
    "VGG16": 14_714_688,
    "ResNet50": 23_587_712,
    "ResNet50V2": 23_564_800,
    "DenseNet121": 7_037_504,
    "EfficientNetB0": 4_049_571,
}
every_family = pytest.mark.parametrize("name", SIZES)


def build(name: str, **settings: object) -> TransUNet:
    return build_model("transunet", **{**SMALL, "backbone": name, **settings})


@pytest.mark.parametrize(("name", "size"), SIZES.items())
def test_whole_backbone_has_as_many_numbers_as_in_keras(name, size):
    with torch.device("meta"):
        backbone = Backbone(name, levels=9)
    found = 0
    for _, module in backbone.keras_layers():
        found += sum(target.tensor.numel() for target in keras_targets(module))
    assert found == size


@every_family
def test_maps_halve_from_level_to_level(name):
    with torch.device("meta"):
        for levels in (2, 4, 6):
            backbone = Backbone(name, levels).eval()
            maps = backbone(torch.zeros(1, 3, 64, 64))
            sides = [64 // 2**level for level in range(backbone.first_level, levels)][:5]
            assert [features.shape[-1] for features in maps] == sides
            assert [features.shape[1] for features in maps] == backbone.channels


def test_what_follows_the_last_map_is_left_out():
    with torch.device("meta"):
        names = [name for name, _ in Backbone("ResNet50V2", levels=3).keras_layers()]
        assert names[-3:] == [f"conv2_block3_{part}" for part in ("preact_bn", "1_conv", "1_bn")]
        names = [name for name, _ in Backbone("DenseNet121", levels=3).keras_layers()]
        assert names[-2:] == ["pool2_bn", "pool2_conv"]
        names = [name for name, _ in Backbone("EfficientNetB0", levels=3).keras_layers()]
        assert names[-2:] == ["block3a_expand_conv", "block3a_expand_bn"]


def test_first_pooling_of_a_resnet_v2_pads_with_zeros():
    encoder = ResNetV2Encoder((1, 1, 1, 1), maps=2, in_channels=3).eval()
    nn.init.zeros_(encoder.conv1.weight)
    nn.init.constant_(encoder.conv1.bias, -1.0)
    seen = []
    encoder.last.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    first, _ = encoder(torch.zeros(1, 3, 8, 8))
    assert first.unique().tolist() == [-1]
    # Of two rows and columns the first touches the border, where 0 is more than -1.
    assert seen[0][0, 0].tolist() == [[0, 0], [0, -1]]


def test_levels_below_a_backbone_are_named_one_ahead_as_in_the_collection():
    network = build("VGG16", filter_num=[2] * 7, image_size=64, pool=False)
    names = {name for name, _ in network.keras_layers() if name.startswith("transunet_down")}
    assert names == {
        *("transunet_down6_encode_stride_conv", "transunet_down6_conv"),
        *("transunet_down7_encode_stride_conv", "transunet_down7_conv"),
    }
    assert [level.after.convs[0].in_channels - 2 for level in network.decoder] == [
        *(2, 512, 512, 256, 128, 64)
    ]


def test_last_level_of_the_decoder_has_no_skip_without_a_map_at_full_size():
    network = build("ResNet50")
    first, last = (level.after.convs[0].in_channels for level in network.decoder)
    assert (first, last) == (6 + 64, 4)
    first, last = (level.after.convs[0].in_channels for level in build("VGG16").decoder)
    assert (first, last) == (6 + 128, 4 + 64)


# What trains


def count_trained(network: nn.Module) -> dict[str, int]:
    counts = {"norms": 0, "others": 0}
    for module in network.modules():
        kind = "norms" if isinstance(module, nn.BatchNorm2d) else "others"
        counts[kind] += sum(value.requires_grad for value in module.parameters(recurse=False))
    return counts


def changed_statistics(network: nn.Module) -> set[str]:
    before = {name: value.clone() for name, value in network.named_buffers() if "running" in name}
    network.train()(torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8))
    after = dict(network.named_buffers())
    return {name for name, value in before.items() if not torch.equal(value, after[name])}


@pytest.mark.parametrize("name", ["ResNet50", "DenseNet121"])
def test_frozen_backbone(name):
    network = build(name, freeze_backbone=True)
    assert count_trained(network.encoder) == {"norms": 0, "others": 0}
    assert count_trained(network.decoder)["others"] > 0
    assert changed_statistics(network) == set()


def test_frozen_backbone_whose_batch_normalisation_trains():
    network = build("ResNet50", freeze_backbone=True, freeze_batch_norm=False)
    trained = count_trained(network.encoder)
    norms = [module for module in network.encoder.modules() if isinstance(module, nn.BatchNorm2d)]
    assert trained == {"norms": 2 * len(norms), "others": 0}
    assert len(changed_statistics(network)) == 2 * len(norms)


def test_backbone_trains_by_default_whatever_its_batch_normalisation():
    network = build("ResNet50", freeze_batch_norm=True)
    assert all(value.requires_grad for value in network.parameters())
    assert changed_statistics(network) != set()


def test_drop_connect_of_a_frozen_backbone_stays_on():
    network = build("EfficientNetB0", freeze_backbone=True).train()
    drops = [part for name, part in network.named_modules() if name.endswith("drop_path")]
    assert drops and all(part.training for part in drops)


def test_efficientnet_starts_he_normal_and_the_rest_glorot_uniform():
    network = build("EfficientNetB0")
    stem = network.encoder[0].encoder.stem_conv.weight
    assert stem.std().item() == pytest.approx((2 / (9 * 32)) ** 0.5, rel=0.1)  # by fan-out
    limit = (6 / (144 + 8)) ** 0.5
    assert 0.9 * limit < network.conv_before.weight.abs().max() <= limit


def test_rescaling_divides_by_the_roots_of_imagenets_deviations():
    network = build("EfficientNetB0", imagenet_rescaling=True).encoder[0].encoder
    pixels = network.imagenet_rescaling(torch.ones(1, 3, 1, 1)).flatten()
    assert pixels.tolist() == pytest.approx([0.229**-0.5, 0.224**-0.5, 0.225**-0.5])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"backbone": "ResNet18"}, f"Unknown backbone 'ResNet18'. Choose one of: {min(BACKBONES)}"),
        ({"backbone": None, "freeze_backbone": True}, "are for a backbone, and there is none"),
        ({"backbone": "ResNet50", "imagenet_rescaling": True}, "found ResNet50 and 3"),
        ({"backbone": "ResNet50", "filter_num": [4]}, "filter_num has 1 level, expected at least"),
        (
            {"backbone": "EfficientNetB0", "imagenet_rescaling": True, "in_channels": 1},
            "found EfficientNetB0 and 1",
        ),
    ],
)
def test_wrong_values_are_errors(settings, message):
    with pytest.raises(InputError, match=message):
        build_model("transunet", **{**SMALL, **settings})


@every_family
@pytest.mark.slow
def test_onnx_file_gives_the_logits_of_torch(name, tmp_path):
    pytest.importorskip("onnxscript", reason="needs the extra [onnx]")
    pytest.importorskip("onnxruntime", reason="needs the extra [onnx]")
    from ovseg.inference.engines import open_onnx
    from ovseg.inference.onnx import export_onnx

    network = build(name, image_size=64).eval()
    images = torch.randint(0, 256, (2, 3, 61, 40), dtype=torch.uint8)
    export_onnx(network, images, tmp_path / "network.onnx")
    engine = open_onnx(tmp_path / "network.onnx")[0]
    with torch.no_grad():
        expected = network(images)
    tolerance = 1e-4 * expected.abs().max()
    assert torch.allclose(engine(images), expected, atol=tolerance)
