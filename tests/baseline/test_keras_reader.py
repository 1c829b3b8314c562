"""Files that are not whole Keras weights files."""

import io
import json
import os
import zipfile

import h5py
import pytest

from keras_files import layers_of, write_keras2
from ovseg.baseline.keras_reader import read_keras_layers
from ovseg.core.errors import InputError


def assert_refused(path):
    with pytest.raises(InputError, match=rf"{path.name} is not a whole Keras weights file"):
        read_keras_layers(path)


def test_truncated_file_is_an_error(source, tmp_path):
    whole = write_keras2(tmp_path / "whole.h5", layers_of(source))
    path = tmp_path / "cut.h5"
    path.write_bytes(whole.read_bytes()[:5000])
    assert_refused(path)


def test_file_that_is_not_hdf5_is_an_error(tmp_path):
    path = tmp_path / "text.h5"
    path.write_text("no weights")
    assert_refused(path)


def test_hdf5_file_of_another_program_is_an_error(tmp_path):
    path = tmp_path / "other.h5"
    with h5py.File(path, "w") as file:
        file["numbers"] = [1, 2]
    assert_refused(path)


def test_layers_that_are_no_group_are_an_error(tmp_path):
    path = tmp_path / "flat.h5"
    with h5py.File(path, "w") as file:
        file["layers"] = [1, 2]
    assert_refused(path)


def test_archive_without_a_model_is_an_error(tmp_path):
    path = tmp_path / "other.keras"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme", "no model")
    assert_refused(path)


def test_missing_file_is_an_error(tmp_path):
    with pytest.raises(InputError, match="There is no weights file"):
        read_keras_layers(tmp_path / "gone.h5")


def test_unnamed_keras3_layers_are_an_error(source, tmp_path, write_keras3):
    path = write_keras3(tmp_path / "w.weights.h5", layers_of(source), named=False)
    with pytest.raises(InputError, match="does not name its layers: save it as .keras or .h5"):
        read_keras_layers(path)


def test_layers_of_a_model_inside_a_keras3_model_are_named_by_the_configuration(tmp_path):
    """As in archives of early Keras 3, whose groups are without names."""
    convolution = {"class_name": "Conv2D", "config": {"name": "block1_conv1"}}
    encoder = {
        "class_name": "Functional",
        "config": {"name": "VGG16_backbone", "layers": [convolution]},
    }
    output = {"class_name": "Conv2D", "config": {"name": "transunet_output"}}
    weights = io.BytesIO()
    with h5py.File(weights, "w") as file:
        file["layers/functional/layers/conv2d/vars/0"] = [1.0]
        file["layers/conv2d/vars/0"] = [2.0]
    path = tmp_path / "model.keras"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", json.dumps({"config": {"layers": [encoder, output]}}))
        archive.writestr("model.weights.h5", weights.getvalue())
    found = {layer.name: layer.weights[0][1].item() for layer in read_keras_layers(path)}
    assert found == {"block1_conv1": 1, "transunet_output": 2}


def test_keras3_layer_of_another_layout_is_an_error(tmp_path):
    path = tmp_path / "w.weights.h5"
    with h5py.File(path, "w") as file:
        file["layers/conv2d/weights/0"] = [1.0]
    with pytest.raises(InputError, match="layer conv2d is not laid out as Keras lays out layers"):
        read_keras_layers(path)


# What Keras never writes


@pytest.fixture
def secret(tmp_path):
    """A file that no weights file may read."""
    path = tmp_path / "secret"
    path.write_bytes(b"0123456789abcdef" * 4)
    return path


def add_external_storage(file, secret):
    group = file.create_group("layers/conv2d/vars")
    group.create_dataset("0", (16,), "f4", external=[(str(secret), 0, 64)])


def add_virtual_dataset(file, secret):
    layout = h5py.VirtualLayout((16,), "f4")
    layout[:] = h5py.VirtualSource(str(secret), "x", (16,))
    file.create_virtual_dataset("layers/conv2d/vars/0", layout)


def add_external_link(file, secret):
    file["layers/conv2d/vars/0"] = h5py.ExternalLink(str(secret), "/x")


def add_linked_group(file, secret):
    file["layers"] = h5py.ExternalLink(str(secret), "/x")


def add_soft_link(file, secret):
    file["layers/conv2d/vars/0"] = h5py.SoftLink("/elsewhere")


def add_huge_dataset(file, secret):
    file.create_dataset("layers/conv2d/vars/0", (2**40,), "f4", chunks=(1024,))


@pytest.mark.parametrize(
    ("add", "problem"),
    [
        (add_external_storage, "layers/conv2d/vars/0 takes its values from another file"),
        (add_virtual_dataset, "layers/conv2d/vars/0 takes its values from another file"),
        (add_external_link, "layers/conv2d/vars/0 is a link to another file"),
        (add_linked_group, "layers is a link to another file"),
        (add_soft_link, "layers/conv2d/vars/0 is a symbolic link"),
        (add_huge_dataset, "4,398,046,511,104 bytes, more than the file stores of it"),
    ],
)
def test_what_could_read_another_file_or_fill_the_memory_is_refused(tmp_path, secret, add, problem):
    path = tmp_path / "attack.weights.h5"
    with h5py.File(path, "w") as file:
        add(file, secret)
    with pytest.raises(InputError, match=f"has what Keras never writes: .*{problem}"):
        read_keras_layers(path)


def test_pipe_instead_of_a_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.h5")
    with pytest.raises(InputError, match="There is no weights file"):
        read_keras_layers(tmp_path / "pipe.h5")


def test_archive_that_unpacks_to_many_times_its_size_is_refused(tmp_path):
    path = tmp_path / "bomb.keras"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("config.json", "{}")
        archive.writestr("model.weights.h5", bytes(50_000_000))
    with pytest.raises(InputError, match="is 50,000,002 bytes unpacked"):
        read_keras_layers(path)
