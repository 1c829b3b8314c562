"""Keras files to the flexible UNet: every layout, and every way in which a file can be wrong."""

import json
import zipfile

import h5py
import numpy as np
import pytest
import torch

from keras_files import layers_of, write_keras2
from ovseg.baseline.keras_weights import load_keras_weights
from ovseg.core.errors import InputError
from ovseg.metrics import dice_coef
from ovseg.models import build_model
from ovseg.training.losses import build_loss
from ovseg.training.optim import KerasAdam

SETTINGS = {"base_filters": 2, "num_layers": 3, "base_kernel": 5, "normalization": True}


@pytest.fixture
def source():
    """A network with weights of its own, batch statistics included."""
    network = build_model("flexible_unet", **SETTINGS).eval()
    for name, buffer in network.named_buffers():
        if "running" in name:
            torch.nn.init.uniform_(buffer, 0.5, 1.5)
    return network


def write_keras3(path, layers, named: bool = True):
    with h5py.File(path, "w") as file:
        counts = {}
        for name, weights in reversed(
            layers
        ):  # Keras 3 numbers groups anew, in an order of its own
            stem = (
                name.rstrip("0123456789").rstrip("_")
                if name[-1].isdigit() and "_" in name
                else name
            )
            number = counts[stem] = counts.get(stem, -1) + 1
            group = file.create_group(
                f"layers/{stem}_{number}/vars" if number else f"layers/{stem}/vars"
            )
            if named:
                group.attrs["name"] = name
            for index, (_, array) in enumerate(weights):
                group.create_dataset(str(index), data=array)
    return path


def assert_same(first, second):
    image = torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8)
    assert torch.equal(first.eval()(image), second.eval()(image))


@pytest.mark.parametrize("first_number", [0, 37])
@pytest.mark.parametrize("root_name", ["model_weights", None])
def test_keras2_files_load_whatever_their_numbers(source, tmp_path, first_number, root_name):
    path = write_keras2(tmp_path / "w.h5", layers_of(source, first_number), root_name)
    network = build_model("flexible_unet", **SETTINGS)
    load_keras_weights(network, path)
    assert_same(network, source)


def test_order_in_the_file_does_not_matter(source, tmp_path):
    layers = layers_of(source, 95)  # 99 and 100 sort wrongly as text
    path = write_keras2(tmp_path / "w.h5", layers[::-1])
    network = build_model("flexible_unet", **SETTINGS)
    load_keras_weights(network, path)
    assert_same(network, source)


def test_keras3_weights_load_by_their_true_names(source, tmp_path):
    path = write_keras3(tmp_path / "w.weights.h5", layers_of(source, 3))
    network = build_model("flexible_unet", **SETTINGS)
    load_keras_weights(network, path)
    assert_same(network, source)


def test_keras3_layers_of_layers_load_by_their_attributes(tmp_path):
    settings = {
        "filter_num_begin": 8,
        "depth": 2,
        "num_heads": [2, 2],
        "window_size": [4, 2],
        "image_size": 32,
    }
    source, network = (build_model("swin_unet", **settings, num_mlp=16).eval() for _ in range(2))
    attributes = {
        "attn_pos": "attn",
        "attn_qkv": "attn/qkv",
        "attn_proj": "attn/proj",
        "mlp_0": "mlp/fc1",
    }
    attributes |= {"mlp_1": "mlp/fc2", "dense": "proj", "embedding": "pos_embed"}
    with h5py.File(tmp_path / "w.weights.h5", "w") as file:
        for name, weights in layers_of(source):
            group = file.create_group(f"layers/{name}")
            group.create_group("vars").attrs["name"] = name
            group["attn_drop/seed_generator/vars/0"] = [1, 2]
            for leaf, array in weights:
                part = leaf.partition("/")[0]
                if part in ("kernel", "bias"):
                    group[f"vars/{len(group['vars'])}"] = array
                elif part not in ("attn_pos_ind", "attn_mask"):
                    inner = (
                        part
                        if part.startswith("norm")
                        else attributes.get(part, part[part.find("linear_trans") :])
                    )
                    place = group.require_group(f"{inner}/vars")
                    place[str(len(place))] = array
    load_keras_weights(network, tmp_path / "w.weights.h5")
    assert_same(network, source)
    with h5py.File(tmp_path / "w.weights.h5", "a") as file:
        file["layers/swin_transformer_block/attn/qkv/vars/2"] = [0.0]
    with pytest.raises(InputError, match="layer swin_transformer_block holds .*attn/qkv/2"):
        load_keras_weights(network, tmp_path / "w.weights.h5")


@pytest.mark.parametrize("named", [True, False])
def test_keras_archives_load(source, tmp_path, named):
    layers = layers_of(source, 3)
    inner = write_keras3(tmp_path / "inner.h5", layers, named)
    classes = {
        "conv2d": "Conv2D",
        "conv2d_transpose": "Conv2DTranspose",
        "batch_normalization": "BatchNormalization",
    }
    stems = {name: name.rsplit("_", 1)[0] for name, _ in layers}
    listed = [
        {"class_name": classes[stems[name]], "config": {"name": name}}
        for name, _ in reversed(layers)
    ]
    with zipfile.ZipFile(tmp_path / "model.keras", "w") as archive:
        archive.writestr("config.json", json.dumps({"config": {"layers": listed}}))
        archive.write(inner, "model.weights.h5")
    network = build_model("flexible_unet", **SETTINGS)
    load_keras_weights(network, tmp_path / "model.keras")
    assert_same(network, source)


def test_file_of_another_depth_names_both_sides_and_changes_nothing(source, tmp_path):
    path = write_keras2(tmp_path / "w.h5", layers_of(source))
    network = build_model("flexible_unet", **{**SETTINGS, "num_layers": 4})
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(InputError, match="conv2d: 11 in the file, 15 in the network"):
        load_keras_weights(network, path)
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


def test_file_of_other_shapes_names_the_layer(source, tmp_path):
    path = write_keras2(tmp_path / "w.h5", layers_of(source))
    network = build_model("flexible_unet", **{**SETTINGS, "base_kernel": 3})
    with pytest.raises(
        InputError, match=r"layer conv2d holds .*\(5, 5, 3, 2\).*expects .*\(3, 3, 3, 2\)"
    ):
        load_keras_weights(network, path)


def test_unnamed_keras3_layers_are_an_error(source, tmp_path):
    path = write_keras3(tmp_path / "w.weights.h5", layers_of(source), named=False)
    with pytest.raises(InputError, match="does not name its layers: save it as .keras or .h5"):
        load_keras_weights(build_model("flexible_unet", **SETTINGS), path)


def test_broken_files_are_errors(source, tmp_path):
    network = build_model("flexible_unet", **SETTINGS)
    path = write_keras2(tmp_path / "w.h5", layers_of(source))
    (tmp_path / "cut.h5").write_bytes(path.read_bytes()[:5000])
    (tmp_path / "text.h5").write_text("no weights")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["numbers"] = [1, 2]
    with zipfile.ZipFile(tmp_path / "other.keras", "w") as archive:
        archive.writestr("readme", "no model")
    with h5py.File(tmp_path / "flat.h5", "w") as file:
        file["layers"] = [1, 2]
    for name in ("cut.h5", "text.h5", "other.h5", "flat.h5", "other.keras"):
        with pytest.raises(InputError, match=rf"{name} is not a whole Keras weights file"):
            load_keras_weights(network, tmp_path / name)
    with pytest.raises(InputError, match="There is no weights file"):
        load_keras_weights(network, tmp_path / "gone.h5")


def test_network_that_is_no_port_is_an_error(tmp_path):
    with pytest.raises(InputError, match="is no network of the TensorFlow baseline"):
        load_keras_weights(torch.nn.Linear(1, 1), tmp_path / "w.h5")


def test_eight_training_steps_follow_keras(shared_file):
    network = build_model(
        "flexible_unet", base_filters=2, base_kernel=9, num_layers=4, dilation=3, dropout_rate=0.0
    )
    load_keras_weights(network, shared_file("keras_fixtures/unet9/best_model.h5"))
    arrays = np.load(shared_file("keras_fixtures/training/train_steps.npz"))
    expected = json.loads(shared_file("keras_fixtures/training/train_steps.json").read_text())[
        "loss_dice_per_step"
    ]
    image, mask = (torch.from_numpy(arrays[name]).permute(0, 3, 1, 2) for name in "xy")
    optimizer, loss_function = (
        KerasAdam(network.parameters(), lr=0.001, eps=1e-7),
        build_loss("bce_dice_loss"),
    )
    for step, (loss_value, dice_value) in enumerate(expected):
        part = slice(0, 2) if step % 2 == 0 else slice(2, 4)
        logits = network(image[part])
        loss = loss_function(logits, mask[part])
        assert loss.item() == pytest.approx(loss_value, abs=1e-5)
        assert dice_coef(logits.detach().sigmoid(), mask[part]).item() == pytest.approx(
            dice_value, abs=1e-5
        )
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_value_(network.parameters(), 0.5)
        optimizer.step()
    with torch.inference_mode():
        probs = network(image).sigmoid().permute(0, 2, 3, 1).numpy()
    assert np.abs(probs - arrays["pred_after"]).max() < 1e-4
