"""Keras files of every layout fill a network; files of another network change nothing."""

import json
import zipfile

import h5py
import pytest
import torch

from keras_files import layers_of, write_keras2
from ovseg.baseline.keras_weights import load_keras_weights
from ovseg.core.errors import InputError
from ovseg.models import build_model

SWIN = {
    "filter_num_begin": 8,
    "depth": 2,
    "num_heads": [2, 2],
    "window_size": [4, 2],
    "image_size": 32,
    "num_mlp": 16,
}
SWIN_ATTRIBUTES = {  # names in the baseline's Keras 2 files -> attributes in Keras 3 files
    "attn_pos": "attn",
    "attn_qkv": "attn/qkv",
    "attn_proj": "attn/proj",
    "mlp_0": "mlp/fc1",
    "mlp_1": "mlp/fc2",
    "dense": "proj",
    "embedding": "pos_embed",
}


def assert_same(first, second):
    image = torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8)
    assert torch.equal(first.eval()(image), second.eval()(image))


@pytest.fixture
def network(tiny_settings):
    """A network like `source` with other weights."""
    return build_model("flexible_unet", **tiny_settings)


@pytest.mark.parametrize("first_number", [0, 37])
@pytest.mark.parametrize("root_name", ["model_weights", None])
def test_keras2_files_load_whatever_their_numbers(
    source, network, tmp_path, first_number, root_name
):
    path = write_keras2(tmp_path / "w.h5", layers_of(source, first_number), root_name)
    load_keras_weights(network, path)
    assert_same(network, source)


def test_order_in_the_file_does_not_matter(source, network, tmp_path):
    layers = layers_of(source, 95)  # 99 and 100 sort wrongly as text
    path = write_keras2(tmp_path / "w.h5", layers[::-1])
    load_keras_weights(network, path)
    assert_same(network, source)


def test_kernel_of_a_depthwise_layer_has_two_names(tmp_path):
    source = build_model("sharp_unet", filters=[2, 3], max_filter=4).eval()
    layers = []
    for name, weights in layers_of(source):
        if name.startswith("depthwise_conv2d"):
            weights = [("kernel", 2 * array) for _, array in weights]
        layers.append((name, weights))
    network = build_model("sharp_unet", filters=[2, 3], max_filter=4).eval()
    load_keras_weights(network, write_keras2(tmp_path / "w.h5", layers))
    for loaded, original in zip(network.sharpen, source.sharpen, strict=True):
        assert torch.equal(loaded.depthwise_kernel, 2 * original.depthwise_kernel)


def test_encoder_is_a_model_inside_the_model(tmp_path):
    """As Keras 2 writes it, where all statistics of batch normalisation come last."""
    settings = {
        "filter_num": [2, 3, 4],
        "embed_dim": 2,
        "num_mlp": 2,
        "num_heads": 1,
        "num_transformer": 1,
        "backbone": "DenseNet121",
        "image_size": 32,
    }
    source = build_model("transunet", **settings)
    of_encoder = {name for name, _ in source.encoder[0].keras_layers()}
    layers = []
    first = []
    last = []
    for name, weights in layers_of(source):
        if name not in of_encoder:
            layers.append((name, weights))
            continue
        name = name.replace("conv1_", "conv1/") if name.startswith("conv1_") else name
        for leaf, array in weights:
            is_statistic = leaf.startswith("moving")
            (last if is_statistic else first).append((f"{name}/{leaf}", array))
    path = write_keras2(tmp_path / "w.h5", [("DenseNet121_backbone", first + last), *layers])
    with h5py.File(path, "r+") as file:
        group = file["model_weights/DenseNet121_backbone"]
        for name, _ in first + last:
            group.move(f"DenseNet121_backbone/{name}:0", f"{name}:0")
        group.attrs["weight_names"] = [f"{name}:0".encode() for name, _ in first + last]
    network = build_model("transunet", **settings)
    load_keras_weights(network, path)
    assert_same(network, source)


def test_keras3_weights_load_by_their_true_names(source, network, tmp_path, write_keras3):
    path = write_keras3(tmp_path / "w.weights.h5", layers_of(source, 3))
    load_keras_weights(network, path)
    assert_same(network, source)


@pytest.mark.parametrize("named", [True, False])
def test_keras_archives_load(source, network, tmp_path, write_keras3, named):
    layers = layers_of(source, 3)
    classes = {
        "conv2d": "Conv2D",
        "conv2d_transpose": "Conv2DTranspose",
        "batch_normalization": "BatchNormalization",
    }
    listed = []
    for name, _ in reversed(layers):
        stem = name.rsplit("_", 1)[0]
        listed.append({"class_name": classes[stem], "config": {"name": name}})
    inner = write_keras3(tmp_path / "inner.h5", layers, named)
    path = tmp_path / "model.keras"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", json.dumps({"config": {"layers": listed}}))
        archive.write(inner, "model.weights.h5")
    load_keras_weights(network, path)
    assert_same(network, source)


def write_swin_as_keras3(path, source):
    """Write a Swin UNet with the attributes that Keras 3 names the parts of a block by."""
    with h5py.File(path, "w") as file:
        for name, weights in layers_of(source):
            group = file.create_group(f"layers/{name}")
            group.create_group("vars").attrs["name"] = name
            group["attn_drop/seed_generator/vars/0"] = [1, 2]
            for weight_name, array in weights:
                part = weight_name.partition("/")[0]
                if part in ("attn_pos_ind", "attn_mask"):  # Keras 3 does not save them
                    continue
                if part in ("kernel", "bias"):
                    place = group["vars"]
                else:
                    attribute = SWIN_ATTRIBUTES.get(part, part)
                    if "linear_trans" in attribute:
                        attribute = attribute[attribute.find("linear_trans") :]
                    place = group.require_group(f"{attribute}/vars")
                place[str(len(place))] = array
    return path


@pytest.fixture
def swin_file(tmp_path):
    """A Keras 3 file of a Swin UNet, and the network it was written from."""
    source = build_model("swin_unet", **SWIN).eval()
    return write_swin_as_keras3(tmp_path / "w.weights.h5", source), source


def test_keras3_parts_of_a_block_load_by_their_attributes(swin_file):
    path, source = swin_file
    network = build_model("swin_unet", **SWIN).eval()
    load_keras_weights(network, path)
    assert_same(network, source)


def test_unknown_weight_of_a_block_is_named(swin_file):
    path, _ = swin_file
    with h5py.File(path, "a") as file:
        file["layers/swin_transformer_block/attn/qkv/vars/2"] = [0.0]
    with pytest.raises(InputError, match="layer swin_transformer_block holds .*attn/qkv/2"):
        load_keras_weights(build_model("swin_unet", **SWIN), path)


def test_file_of_another_depth_names_both_sides_and_changes_nothing(
    source, tmp_path, tiny_settings
):
    path = write_keras2(tmp_path / "w.h5", layers_of(source))
    network = build_model("flexible_unet", **{**tiny_settings, "num_layers": 4})
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(InputError, match="conv2d: 11 in the file, 15 in the network"):
        load_keras_weights(network, path)
    for name, value in network.state_dict().items():
        assert torch.equal(before[name], value)


def test_file_of_other_shapes_names_the_layer(source, tmp_path, tiny_settings):
    path = write_keras2(tmp_path / "w.h5", layers_of(source))
    network = build_model("flexible_unet", **{**tiny_settings, "base_kernel": 3})
    message = r"layer conv2d holds .*\(5, 5, 3, 2\).*expects .*\(3, 3, 3, 2\)"
    with pytest.raises(InputError, match=message):
        load_keras_weights(network, path)


def test_network_that_is_not_of_the_baseline_is_an_error(tmp_path):
    with pytest.raises(InputError, match="Linear is not a network of the TensorFlow baseline"):
        load_keras_weights(torch.nn.Linear(1, 1), tmp_path / "w.h5")
