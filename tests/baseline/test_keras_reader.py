"""Files that are not whole Keras weights files."""

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


def test_keras3_layer_of_another_layout_is_an_error(tmp_path):
    path = tmp_path / "w.weights.h5"
    with h5py.File(path, "w") as file:
        file["layers/conv2d/weights/0"] = [1.0]
    with pytest.raises(InputError, match="layer conv2d is not laid out as Keras lays out layers"):
        read_keras_layers(path)
