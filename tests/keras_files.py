"""A network's weights as files of Keras, written as Keras writes them."""

import h5py
import numpy as np

from ovseg.baseline.keras_weights import keras_targets


def layers_of(network, first_number: int = 0) -> list[tuple[str, list[tuple[str, np.ndarray]]]]:
    """The layers of a network as Keras would name and shape them.

    Args:
        network: a port of the baseline, with `keras_layers`.
        first_number: number of the first layer of each kind; Keras writes no number 0.

    Returns:
        Pairs of a name and the layer's weights, which are pairs of a name and an array.
    """
    numbers: dict[str, int] = {}
    layers = []
    for stem, module in network.keras_layers():
        number = numbers.get(stem, first_number)
        numbers[stem] = number + 1
        weights = []
        for target in keras_targets(module):
            array = target.tensor.detach().numpy().transpose(np.argsort(target.axes))
            weights.append((target.name, array))
        layers.append((f"{stem}_{number}" if number else stem, weights))
    return layers


def write_keras2(path, layers, root_name: str | None = "model_weights"):
    """Write layers as Keras 2 does: a whole model, or weights only where `root_name` is None."""
    names = ["input_1"] + [name for name, _ in layers]
    with h5py.File(path, "w") as file:
        root = file if root_name is None else file.create_group(root_name)
        root.attrs["layer_names"] = [name.encode() for name in names]
        root.create_group("input_1").attrs["weight_names"] = np.array([])
        for name, weights in layers:
            group = root.create_group(name)
            group.attrs["weight_names"] = [f"{name}/{leaf}:0".encode() for leaf, _ in weights]
            for leaf, array in weights:
                group.create_dataset(f"{name}/{leaf}:0", data=array)
    return path
