"""Whether an EfficientNet divides by ImageNet's deviations follows from its file."""

import json

import h5py
import pytest
import torch
from timm.data import IMAGENET_DEFAULT_STD

from keras_files import layers_of, write_keras2
from ovseg.baseline.importer import import_baseline
from ovseg.baseline.rescaling import settle_rescaling
from ovseg.models import build_model


@pytest.fixture
def write_weights(tmp_path):
    """A function that writes weights of the EfficientUNet, with a graph if it is given."""

    def write(after_normalization: str | None = None, variance=(1.0, 1.0, 1.0)):
        network = build_model("efficient_unet")
        network.encoder.normalization.variance.copy_(torch.tensor(variance))
        path = write_keras2(tmp_path / "best_model.h5", layers_of(network))
        if after_normalization is not None:
            names = {"normalization": "rescaling", after_normalization: "normalization"}
            layers = []
            for name, source in names.items():
                layers.append({"config": {"name": name}, "inbound_nodes": [[[source, 0, 0, {}]]]})
            with h5py.File(path, "a") as file:
                file.attrs["model_config"] = json.dumps({"config": {"layers": layers}})
        return path

    return write


def settle(path, arch="efficient_unet", **arguments):
    model = {"arch": arch, "arch_args": arguments}
    rows = settle_rescaling(model, path)
    return model["arch_args"].get("imagenet_rescaling"), rows


def test_a_graph_decides(write_weights):
    found, rows = settle(write_weights("tf.math.multiply", IMAGENET_DEFAULT_STD))
    assert found is True
    becomes = "model.arch_args.imagenet_rescaling: true, as in the graph of the file"
    assert rows == [("weights", "best_model.h5", becomes)]
    assert settle(write_weights("stem_conv_pad", IMAGENET_DEFAULT_STD))[0] is False


def test_without_a_graph_the_constants_of_imagenet_decide(write_weights):
    found, rows = settle(write_weights(variance=IMAGENET_DEFAULT_STD))
    assert found is True
    assert "which the file started from" in rows[0][2]


def test_without_either_the_default_is_taken(write_weights):
    assert settle(write_weights())[0] is False
    assert settle(write_weights(), "efficientnet_b7_unet")[0] is True
    assert settle(None)[0] is False


def test_other_networks_have_no_row(tmp_path):
    assert settle(tmp_path / "none.h5", "u2net") == (None, [])
    assert settle(tmp_path / "none.h5", "transunet") == (None, [])
    assert settle(tmp_path / "none.h5", "transunet", backbone="ResNet50") == (None, [])


def test_configuration_of_a_backbone_is_overruled_by_the_graph_of_the_model_inside(tmp_path):
    settings = {"backbone": "EfficientNetB0", "imagenet_rescaling": True}
    found, rows = settle(None, "transunet", **settings)
    assert found is True
    assert rows[0][2].endswith("true, as [model] weights, as there is nothing that shows it")

    inside = []
    for name, source in {"normalization": "rescaling", "stem_conv_pad": "normalization"}.items():
        inside.append({"config": {"name": name}, "inbound_nodes": [[[source, 0, 0, {}]]]})
    encoder = {"config": {"name": "EfficientNetB0_backbone", "layers": inside}, "inbound_nodes": []}
    path = tmp_path / "best_model.h5"
    with h5py.File(path, "w") as file:
        file.attrs["model_config"] = json.dumps({"config": {"layers": [encoder]}})
    assert settle(path, "transunet", **settings)[0] is False


def test_import_builds_the_network_of_the_file(write_weights, write_experiment, tmp_path):
    config = write_experiment('"TensorflowUNet"', '"TensorflowEfficientUNet"')
    weights = write_weights(variance=IMAGENET_DEFAULT_STD)
    rows = import_baseline(config, weights, tmp_path / "imported")
    assert any("imagenet_rescaling: true" in becomes for _, _, becomes in rows)
    assert "imagenet_rescaling: true" in (tmp_path / "imported" / "config.yaml").read_text()
