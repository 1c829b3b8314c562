"""The layers of a Keras weights file, read without TensorFlow.

Three layouts are known: Keras 2 `.h5` (whole model or weights only), Keras 3 `.weights.h5`, and the
Keras 3 archive `.keras`. This is the only module that imports h5py.
"""

import io
import json
import re
import zipfile
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ovseg.core.errors import InputError, first_five
from ovseg.core.limits import MAX_TEXT_BYTES

# Weights hardly shrink: a file that was packed again is at most some per cent smaller.
MAX_COMPRESSION = 4


@dataclass(frozen=True)
class KerasLayer:
    """A layer of a file.

    Attributes:
        name: such as `conv2d_37`, or `conv2d` for the first of its kind.
        weights: pairs of a name and an array in Keras' order. Keras 2 names weights (`kernel`,
            `qkv/kernel`), Keras 3 numbers them (`0`, `attn/qkv/0`).
    """

    name: str
    weights: list[tuple[str, np.ndarray]]

    @property
    def stem(self) -> str:
        """The name without its number, as Keras 3 spells it (DenseNet's conv1/conv of Keras 2)."""
        return re.sub(r"_\d+$", "", self.name).replace("/", "_")

    @property
    def number(self) -> int:
        """The number at the end of the name; -1 where it has none, which was created first."""
        match = re.search(r"_(\d+)$", self.name)
        if match is None:
            return -1
        return int(match[1])


def read_keras_layers(path: Path) -> list[KerasLayer]:
    """All layers with weights of a Keras file.

    Raises:
        InputError: the file is missing, truncated, not HDF5 or not written by Keras.
    """
    if not path.is_file():
        raise InputError(f"There is no weights file {path}. Check the path.")
    try:
        if zipfile.is_zipfile(path):
            return _read_archive(path)
        with h5py.File(path, "r") as file:
            _refuse_unusual(path, file)
            if "layers" in file:
                return _read_keras3(file, {})
            return _read_keras2(file)
    except InputError:
        raise
    # HDF5 and zip raise whatever their parsers make of damaged bytes.
    except Exception as error:
        text = str(error) or type(error).__name__
        reason = text.splitlines()[0]
        raise InputError(
            f"{path} is not a whole Keras weights file ({reason}). Save or copy it again."
        ) from error


def read_keras_graph(path: Path) -> dict[str, str]:
    """The graph in a whole-model file: layer name -> JSON of its inputs; nothing in other files.

    Layers of a model inside the model are among them.

    Raises:
        InputError: the file is missing, or its description is damaged.
    """
    if not path.is_file():
        raise InputError(f"There is no weights file {path}. Check the path.")
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                if archive.getinfo("config.json").file_size > MAX_TEXT_BYTES:
                    raise ValueError("its config.json is too large")
                text = archive.read("config.json")
        else:
            with h5py.File(path, "r") as file:
                text = file.attrs.get("model_config", b"{}")
        return _read_inputs(json.loads(text).get("config", {}))
    except Exception as error:  # as in `read_keras_layers`
        raise InputError(
            f"{path} is not a whole Keras weights file ({error}). Save or copy it again."
        ) from error


def _read_inputs(config: dict[str, Any]) -> dict[str, str]:
    """Layer name -> JSON of its inputs, of a model and of the models inside it."""
    inputs = {}
    for layer in config.get("layers", []):
        # The configuration of a custom layer can be without its name.
        name = layer["config"].get("name", layer.get("name"))
        inputs[name] = json.dumps(layer["inbound_nodes"])
        inputs.update(_read_inputs(layer["config"]))
    return inputs


def _read_archive(path: Path) -> list[KerasLayer]:
    """The weights inside a `.keras` archive, with the layer names of its configuration."""
    limit = MAX_COMPRESSION * path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        weights_size = archive.getinfo("model.weights.h5").file_size
        config_size = archive.getinfo("config.json").file_size
        if weights_size > limit or config_size > MAX_TEXT_BYTES:
            raise InputError(
                f"{path} is {weights_size + config_size:,} bytes unpacked, more than "
                f"{MAX_COMPRESSION} times the file, which weights never are. Nothing was read."
            )
        config = json.loads(archive.read("config.json"))
        weights = archive.read("model.weights.h5")
    with h5py.File(io.BytesIO(weights), "r") as file:
        _refuse_unusual(path, file)
        return _read_keras3(file, _names_of_groups(config, "layers"))


def _refuse_unusual(path: Path, file: h5py.File) -> None:
    """Refuse what Keras never writes and what could read other files or fill the memory.

    An HDF5 file can take a dataset's bytes from any other file: by external storage, by a virtual
    dataset, or by a link. A dataset can also be larger than what is stored of it.

    Raises:
        InputError: there is such an item; nothing of it was read.
    """
    problems = []

    def visit_link(name: str, link: object) -> None:
        if isinstance(link, h5py.ExternalLink):
            problems.append(f"{name} is a link to another file")
        elif isinstance(link, h5py.SoftLink):
            problems.append(f"{name} is a symbolic link")

    def visit(name: str, item: object) -> None:
        if not isinstance(item, h5py.Dataset):
            return
        if item.is_virtual or item.external:
            problems.append(f"{name} takes its values from another file")
        elif item.nbytes > item.id.get_storage_size():
            problems.append(f"{name} is {item.nbytes:,} bytes, more than the file stores of it")

    file.visititems_links(visit_link)
    if not problems:
        file.visititems(visit)
    if problems:
        raise InputError(
            f"{path} has what Keras never writes: {first_five(problems)}. Nothing was read from "
            "it. Use a file from a source that you trust."
        )


def _read_keras2(file: h5py.File) -> list[KerasLayer]:
    """Read the groups that `layer_names` lists, at the root or in `model_weights`.

    keras-unet-collection's encoder is a model inside the model, a group `<name>_backbone` whose
    weights begin with the names of its layers. Of a frozen batch normalisation Keras writes the
    moving statistics after the other layers, so weights are put together by those names.
    """
    root = file.get("model_weights", file)
    layers = []
    for name in _texts(root.attrs["layer_names"]):
        group = root[name]
        weights: dict[str, list[tuple[str, np.ndarray]]] = {}
        for path in _texts(group.attrs["weight_names"]):
            layer = name
            weight = _short_name(path)
            if name.endswith("_backbone"):
                layer, _, weight = path.removesuffix(":0").rpartition("/")
            weights.setdefault(layer, []).append((weight, group[path][()]))
        layers += [KerasLayer(layer, arrays) for layer, arrays in weights.items()]
    return layers


def _texts(names: Iterable[object]) -> list[str]:
    return [name.decode() if isinstance(name, bytes) else str(name) for name in names]


def _short_name(path: str) -> str:
    """The name of a Keras 2 weight inside its layer.

    `conv2d_4/kernel:0` becomes `kernel`, and `block_3/attention_3/name1_qkv/kernel:0` becomes
    `qkv/kernel`: a layer inside a layer is the one whose name the baseline begins with `name<n>_`,
    else the last before the weight. A variable that a layer makes itself can be without the layer's
    name: `beta_factor:0`.
    """
    parts = path.removesuffix(":0").split("/")
    if len(parts) > 1:
        parts = parts[1:]
    first = max(0, len(parts) - 2)
    for index, part in enumerate(parts):
        if re.match(r"name\d+_", part):
            first = index
            break
    return "/".join(re.sub(r"^name\d+_", "", part) for part in parts[first:])


def _read_keras3(parent: h5py.Group, names: Mapping[str, str]) -> list[KerasLayer]:
    """Read the groups `layers/<class>_<n>/vars/<i>` of a model, and of the models inside it.

    The number n follows the order of the layers; the true name is an attribute of `vars`. The
    weights of a layer inside a layer are in `layers/<class>_<n>/<attribute>/vars/<i>`, those of a
    model inside the model in `layers/<class>_<n>/layers/`.

    Args:
        parent: the open weights, or the group of a model.
        names: path of a group -> layer name, for files of early Keras 3 whose groups do not have
            the attribute.
    """
    layers = []
    for group_name, group in parent["layers"].items():
        if "layers" in group:
            layers += _read_keras3(group, names)
            continue
        weights = []
        for path in _list_datasets(group):
            if "seed_generator" in path:  # state of a dropout layer
                continue
            match = re.fullmatch(r"(.+/)?vars/(\d+)", path)
            if match is None:
                raise ValueError(f"layer {group_name} is not laid out as Keras lays out layers")
            inner = match[1] or ""
            weights.append((inner + match[2], group[path][()]))
        if not weights:
            continue
        name = group["vars"].attrs.get("name", names.get(group.name.removeprefix("/")))
        if name is None:
            raise ValueError("it does not name its layers: save it as .keras or .h5")
        layers.append(KerasLayer(str(name), weights))
    return layers


def _names_of_groups(config: dict[str, Any], folder: str) -> dict[str, str]:
    """Path of a group -> layer name, of a model and of the models inside it.

    Keras 3 numbers the groups of a class in the order of the configuration.

    Args:
        config: of the model.
        folder: the path of its layers.
    """
    names = {}
    counts: Counter[str] = Counter()
    for layer in config["config"]["layers"]:
        words = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", layer["class_name"])
        group = re.sub(r"([a-z])([A-Z])", r"\1_\2", words).lower()
        number = counts[group]
        counts[group] += 1
        if number:
            group = f"{group}_{number}"
        # The configuration of a custom layer can be without its name.
        names[f"{folder}/{group}"] = layer["config"].get("name", layer.get("name"))
        if "layers" in layer["config"]:
            names.update(_names_of_groups(layer, f"{folder}/{group}/layers"))
    return names


def _list_datasets(group: h5py.Group) -> list[str]:
    """Paths of all datasets below a group."""
    paths: list[str] = []

    def visit(path: str, item: object) -> None:
        if isinstance(item, h5py.Dataset):
            paths.append(path)

    group.visititems(visit)
    return paths
