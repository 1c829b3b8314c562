"""A tiny network of the baseline and files of its weights."""

import h5py
import pytest
from torch.nn import init

from ovseg.models import build_model


@pytest.fixture
def tiny_settings():
    """Arguments of a tiny flexible UNet."""
    return {"base_filters": 2, "num_layers": 3, "base_kernel": 5, "normalization": True}


@pytest.fixture
def source(tiny_settings):
    """A tiny flexible UNet with random weights and random batch statistics."""
    network = build_model("flexible_unet", **tiny_settings).eval()
    for name, buffer in network.named_buffers():
        if "running" in name:
            init.uniform_(buffer, 0.5, 1.5)
    return network


@pytest.fixture
def write_keras3():
    """A function that writes layers, as `keras_files.layers_of` gives them, like Keras 3 does."""

    def write(path, layers, named: bool = True):
        counts: dict[str, int] = {}
        with h5py.File(path, "w") as file:
            for name, weights in reversed(layers):  # Keras 3 numbers groups in another order
                stem, _, number = name.rpartition("_")
                if not number.isdigit():
                    stem = name
                number = counts.get(stem, 0)
                counts[stem] = number + 1
                group_name = f"{stem}_{number}" if number else stem
                group = file.create_group(f"layers/{group_name}/vars")
                if named:
                    group.attrs["name"] = name
                for index, (_, array) in enumerate(weights):
                    group.create_dataset(str(index), data=array)
        return path

    return write
