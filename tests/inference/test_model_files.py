"""Files of `ovseg export` are opened again, and others are refused in a line."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from ovseg.core.errors import InputError
from ovseg.core.runs import EXPORTED
from ovseg.inference.engines import convert_to_openvino
from ovseg.inference.export import export_run
from ovseg.inference.model_files import SUFFIXES, open_model
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


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"fit": "crop"}, "Unknown fit 'crop'"),
        ({"network": {"arch": "unet9"}}, "Unknown arch 'unet9'"),
        ({"network": {"arch": "flexible_unet", "arch_args": {"depth": 3}}}, "does not take depth"),
        ({"postprocessing": {"threshold": 2.0}}, "threshold of post-processing is 2.0"),
        ({"categories": ["background", "cyst", "solid", "mixed"]}, "has 1 classes, but .* name 4"),
    ],
)
def test_description_that_can_not_be_used_names_the_file(weights, rewrite, change, problem):
    path = rewrite(description=describe(weights, **change))
    with pytest.raises(InputError, match=problem) as error:
        open_model(path)
    assert str(path) in str(error.value)


def test_categories_of_a_network_of_one_class_are_refused_in_every_format(exported, tmp_path):
    onnx = pytest.importorskip("onnx")
    model = onnx.load(exported / "export" / "model.onnx")
    [entry] = [entry for entry in model.metadata_props if entry.key == "ovseg"]
    changed = {**json.loads(entry.value), "categories": ["background", "cyst", "solid", "mixed"]}
    entry.value = json.dumps(changed)
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(InputError, match="model.onnx has 1 classes, but .* name 4: background"):
        Predictor.load(tmp_path / "model.onnx", "cpu")
    pytest.importorskip("openvino", reason="needs the extra [openvino]")
    metadata = {"ovseg": entry.value}
    convert_to_openvino(tmp_path / "model.onnx", tmp_path / "model.xml", metadata)
    with pytest.raises(InputError, match="model.xml has 1 classes, but .* name 4: background"):
        Predictor.load(tmp_path / "model.xml", "cpu")


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


@pytest.mark.parametrize("command", ["evaluate", "export", "postprocess"])
@pytest.mark.parametrize("place", ["export", "export/model.onnx"])
def test_export_in_place_of_a_run_names_the_run(exported, run_command, capsys, command, place):
    assert run_command(command, "--run", exported / place) == 2
    error = capsys.readouterr().err
    assert f"error: {exported / place} was written by ovseg export: it holds a network" in error
    assert f"Name the run that it was made of: {exported}." in error


def test_export_of_an_unknown_run_says_what_a_run_is(weights, run_command, capsys):
    assert run_command("evaluate", "--run", weights, "--output", weights / "out") == 2
    assert "made of, such as runs/unet/version_0." in capsys.readouterr().err


def test_suffixes_of_exports_are_those_of_the_formats():
    assert set(EXPORTED) == set(SUFFIXES)
