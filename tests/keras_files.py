"""A network's weights as files of Keras, written as Keras writes them."""

import h5py
import numpy as np

from ovseg.baseline.keras_weights import keras_targets


def layers_of(network, first_number: int = 0) -> list[tuple[str, list[tuple[str, np.ndarray]]]]:
    """(name, weights) as Keras would name and shape them, numbers from `first_number`."""
    numbers, layers = {}, []
    for stem, module in network.keras_layers():
        number = numbers[stem] = numbers.get(stem, first_number - 1) + 1
        weights = []
        for target in keras_targets(module):
            back = np.argsort(target.axes)
            weights.append((target.name, target.tensor.detach().numpy().transpose(back)))
        layers.append((f"{stem}_{number}" if number else stem, weights))
    return layers


def write_keras2(path, layers, root_name: str | None = "model_weights"):
    with h5py.File(path, "w") as file:
        root = file.create_group(root_name) if root_name else file
        root.attrs["layer_names"] = [name.encode() for name, _ in [("input_1", []), *layers]]
        root.create_group("input_1").attrs["weight_names"] = np.array([])
        for name, weights in layers:
            group = root.create_group(name)
            group.attrs["weight_names"] = [f"{name}/{leaf}:0".encode() for leaf, _ in weights]
            for leaf, array in weights:
                group.create_dataset(f"{name}/{leaf}:0", data=array)
    return path
