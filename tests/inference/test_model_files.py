"""Files of `ovseg export` are opened again, and others are refused in a line."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from ovseg.core.errors import InputError
from ovseg.inference.export import export_run
from ovseg.inference.model_files import open_model
from ovseg.inference.predictor import Predictor


@pytest.fixture(scope="module")
def weights(run, tmp_path_factory):
    """A folder of safetensors. Not to be changed."""
    folder = tmp_path_factory.mktemp("weights") / "model"
    export_run(run, folder, "safetensors")
    return folder


@pytest.fixture
def rewrite(weights, tmp_path):
    """A function that writes the file with other tensors or another description."""

    def write(state=None, description=None):
        path = tmp_path / "model.safetensors"
        tensors = load_file(weights / "model.safetensors")
        metadata = {}
        if description is not None:
            metadata = {"ovseg": description}
        save_file({**tensors, **(state or {})}, path, metadata)
        return path

    return write


def describe(weights, **changes):
    description = json.loads((weights / "model.json").read_text())
    return json.dumps({**description, **changes})


def test_file_alone_is_enough(weights, run, tmp_path, images):
    path = tmp_path / "copy.safetensors"
    shutil.copy(weights / "model.safetensors", path)
    expected = Predictor.load(run, "cpu").predict(images / "a.png")
    found = Predictor.load(path, "cpu").predict(images / "a.png")
    assert (found.probs == expected.probs).all()


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"image_size": 10**9}, "image_size"),
        ({"network": {"arch": 3}}, "arch"),
        ({"categories": ["background"]}, "categories"),
        ({"postprocessing": {"unknown": 1}}, "unknown"),
    ],
)
def test_description_is_checked(weights, rewrite, change, problem):
    path = rewrite(description=describe(weights, **change))
    with pytest.raises(InputError, match=f"not of ovseg export .*{problem}.*ovseg export"):
        open_model(path)


@pytest.mark.parametrize("description", [None, "", "[" * 100_000, "no json"])
def test_file_without_a_description_is_refused(rewrite, description):
    with pytest.raises(InputError, match="metadata of .* are not of ovseg export"):
        open_model(rewrite(description=description))


def test_other_weights_are_refused(weights, rewrite):
    path = rewrite({"surplus": torch.zeros(2)}, describe(weights))
    with pytest.raises(InputError, match=r"(?s)holds other weights.*surplus"):
        open_model(path)


def test_network_of_a_class_of_its_own_needs_trust(weights, rewrite):
    path = rewrite(description=describe(weights, network={"arch": "os.system", "arch_args": {}}))
    with pytest.raises(InputError, match="trust_config"):
        open_model(path)


@pytest.mark.parametrize("name", ["model.onnx", "model.xml", "model.safetensors"])
@pytest.mark.parametrize("content", [b"", b"broken", b"\xff" * 100], ids=["empty", "text", "bytes"])
def test_damaged_file_is_one_line(tmp_path, name, content):
    engine = {"model.onnx": "onnxruntime", "model.xml": "openvino"}.get(name)
    if engine is not None:
        pytest.importorskip(engine, reason="needs the extra of this engine")
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError, match=name):
        open_model(path)


def test_folder_of_several_files_is_refused(weights, tmp_path):
    folder = shutil.copytree(weights, tmp_path / "several")
    shutil.copy(folder / "model.safetensors", folder / "model.onnx")
    with pytest.raises(InputError, match="holds 2 of model.onnx, model.xml"):
        open_model(folder)
