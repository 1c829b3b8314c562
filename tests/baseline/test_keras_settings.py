import sys

import pytest

from ovseg.baseline.keras_settings import keras_unet_arguments, require_tensorflow
from ovseg.core.errors import InputError


def test_arguments_are_those_of_the_flexible_unet_and_its_defaults():
    assert keras_unet_arguments({"num_layers": 3, "activation": "mish"}, 32) == {
        "base_filters": 16,
        "base_kernel": 9,
        "num_layers": 3,
        "dilation": 3,
        "activation": "mish",
        "normalization": False,
        "input_scale": 1 / 255,
        "image_size": 32,
    }


def test_arguments_that_only_torch_has_are_left_out():
    torch_only = {"dropout_rate": 0.1, "convolution": "direct", "checkpointing": True}
    assert keras_unet_arguments(torch_only, 128) == keras_unet_arguments(None, 128)


@pytest.mark.parametrize(
    ("arch_args", "image_size", "message"),
    [
        ({"num_layers": 3}, 50, "--image_size 50 must be a multiple of 4"),
        ({"classes": 5}, 128, "classes is 5, but the Keras network has 1 class"),
        ({"layers": 3}, 128, "arch flexible_unet does not take layers"),
    ],
)
def test_network_that_keras_cannot_build_is_an_error(arch_args, image_size, message):
    with pytest.raises(InputError, match=message):
        keras_unet_arguments(arch_args, image_size)


def test_missing_tensorflow_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    with pytest.raises(InputError, match=r"pip install 'ovseg\[tensorflow\]'"):
        require_tensorflow()
