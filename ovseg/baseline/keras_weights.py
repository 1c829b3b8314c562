"""A Keras weights file to a network of ours, strictly: every weight is used once, every parameter is filled.

Keras names a layer by its class and a running number (`conv2d_37`). The numbers' order is the order of creation,
whatever they start from, and each of our networks tells its modules in that order by `keras_layers()`: pairs of a Keras
name without number and a module. The only module that imports h5py.
"""

import io
import json
import re
import zipfile
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import torch
from torch import Tensor, nn

from ovseg.core.errors import InputError, first_five


@dataclass(frozen=True)
class KerasLayer:
    """A layer of a file: its name and its weights in Keras' order, named where the file names them."""

    name: str
    weights: list[tuple[str, np.ndarray]]

    @property
    def stem(self) -> str:
        return re.sub(r"_\d+$", "", self.name)

    @property
    def number(self) -> int:
        match = re.search(r"_(\d+)$", self.name)
        return int(match[1]) if match else -1


@dataclass(frozen=True)
class Target:
    """A parameter or buffer, the Keras name of its weight, and the order of axes that turns Keras' array into ours."""

    name: str
    tensor: Tensor
    axes: tuple[int, ...]

    @property
    def keras_shape(self) -> tuple[int, ...]:
        shape = [0] * len(self.axes)
        for ours, theirs in enumerate(self.axes):
            shape[theirs] = self.tensor.shape[ours]
        return tuple(shape)


def load_keras_weights(model: nn.Module, path: Path) -> None:
    """Fill a network with the weights of a Keras file; the network is changed only when everything fits.

    Args:
        model: a network that was ported from the baseline (it has `keras_layers`).
        path: Keras 2 `.h5`, whole model or weights only; Keras 3 `.keras` or `.weights.h5`.

    Raises:
        InputError: the file is no such file, or its layers and the network's differ; both sides are named.
    """
    if not hasattr(model, "keras_layers"):
        raise InputError(
            f"{type(model).__name__} is no network of the TensorFlow baseline: no Keras weights fit it."
        )
    theirs, ours = _group(read_keras_layers(Path(path))), defaultdict(list)
    for stem, module in model.keras_layers():
        ours[stem].append(module)
    counts = [
        f"{stem}: {len(theirs[stem])} in the file, {len(ours[stem])} in the network"
        for stem in sorted(ours.keys() | theirs.keys())
        if len(theirs[stem]) != len(ours[stem])
    ]
    if counts:
        raise InputError(
            f"{path} is of another network than this {type(model).__name__}: {first_five(counts)}."
        )
    filled = [
        pair
        for stem, modules in ours.items()
        for layer, module in zip(theirs[stem], modules, strict=True)
        for pair in _match(Path(path), layer, module)
    ]
    _check_all_filled(model, [tensor for tensor, _ in filled])
    with torch.no_grad():
        for tensor, values in filled:
            tensor.copy_(values)


def _group(layers: list[KerasLayer]) -> dict[str, list[KerasLayer]]:
    """Layers by name without number, each list in the order of creation."""
    groups = defaultdict(list)
    for layer in sorted(layers, key=lambda layer: layer.number):
        groups[layer.stem].append(layer)
    return groups


def _match(path: Path, layer: KerasLayer, module: nn.Module) -> Iterator[tuple[Tensor, Tensor]]:
    """Pairs of a tensor of the network and its new values, for one layer."""
    targets = keras_targets(module)
    arrays = dict(layer.weights)
    if all(name.rpartition("/")[2].isdigit() for name in arrays):
        if any("/" in name for name in arrays):
            targets = [target for target in targets if not _is_computed(module, target)]
        arrays = _name_weights(arrays, targets)
    found = {name: tuple(array.shape) for name, array in arrays.items()}
    wanted = {target.name: target.keras_shape for target in targets}
    if found != wanted or len(layer.weights) != len(targets):
        raise InputError(
            f"{path}: layer {layer.name} holds {found}, the network expects {wanted}. Check its settings."
        )
    for target in targets:
        values = torch.from_numpy(np.array(arrays[target.name].transpose(target.axes), order="C"))
        yield target.tensor, values.to(target.tensor.dtype)


def _is_computed(module: nn.Module, target: Target) -> bool:
    """Positions and masks of a layer of layers follow from its settings; Keras 3 does not save them."""
    return hasattr(module, "keras_parts") and any(
        target.tensor is buffer for buffer in module.buffers(recurse=False)
    )


def _name_weights(arrays: dict[str, np.ndarray], targets: list[Target]) -> dict[str, np.ndarray]:
    """Keras 3 numbers the weights of a layer, `0`, and of each part of a layer of layers, `attn/qkv/0`: name them.

    A part is known by its attribute in Keras; what cannot be told keeps its number, so the shapes' check names it.
    """
    named = {}
    for name, array in arrays.items():
        attribute, _, number = name.rpartition("/")
        part = _KERAS3_PARTS.get(attribute, attribute)
        of_part = [t.name for t in targets if not part or re.search(rf"(^|_){part}(/|$)", t.name)]
        named[of_part[int(number)] if int(number) < len(of_part) else name] = array
    return named


_KERAS3_PARTS = {  # attributes of keras-unet-collection's layers -> names in the baseline's Keras 2 files
    "attn": "attn_pos",
    "attn/qkv": "attn_qkv",
    "attn/proj": "attn_proj",
    "mlp/fc1": "mlp_0",
    "mlp/fc2": "mlp_1",
    "proj": "dense",
    "pos_embed": "embedding",
}


def keras_targets(module: nn.Module) -> list[Target]:
    """What a module expects from its Keras layer, in Keras' order of weights.

    A module of several layers in one (a Swin block) tells its parts by `keras_parts()`: Keras name -> module or tensor;
    a weight of a part is called `part/leaf`, that of a tensor just `part`.
    """
    if hasattr(module, "keras_parts"):
        targets = []
        for name, part in module.keras_parts().items():
            if isinstance(part, Tensor):
                targets.append(Target(name, part, tuple(range(part.ndim))))
            else:
                targets += [
                    Target(f"{name}/{t.name}", t.tensor, t.axes) for t in keras_targets(part)
                ]
        return targets
    if isinstance(module, nn.Embedding):
        return [Target("embeddings", module.weight, (0, 1))]
    weight_name = next(
        name for kind, name in _WEIGHT_NAMES.items() if isinstance(module, kind)
    )  # timm has subclasses
    targets = [Target(weight_name, module.weight, _weight_axes(module))]
    if module.bias is not None:
        targets.append(Target("beta" if module.weight.ndim == 1 else "bias", module.bias, (0,)))
    if isinstance(module, nn.BatchNorm2d):
        moving = {"moving_mean": module.running_mean, "moving_variance": module.running_var}
        targets += [Target(name, tensor, (0,)) for name, tensor in moving.items()]
    if targets[0].axes == _DEPTHWISE:
        targets[0] = Target("depthwise_kernel", module.weight, _DEPTHWISE)
    return targets


_DEPTHWISE = (2, 3, 0, 1)
_WEIGHT_NAMES = {
    nn.Conv2d: "kernel",
    nn.ConvTranspose2d: "kernel",
    nn.Linear: "kernel",
    nn.BatchNorm2d: "gamma",
    nn.LayerNorm: "gamma",
}


def _weight_axes(module: nn.Module) -> tuple[int, ...]:
    """Keras keeps kernels as (height, width, in, out), transposed ones as (height, width, out, in)."""
    if isinstance(module, nn.Conv2d):
        return _DEPTHWISE if module.groups > 1 else (3, 2, 0, 1)
    if isinstance(module, nn.ConvTranspose2d):
        return (3, 2, 0, 1)
    return (1, 0) if isinstance(module, nn.Linear) else (0,)


def _check_all_filled(model: nn.Module, filled: list[Tensor]) -> None:
    """A port that forgets a module in `keras_layers` is a defect of ours, not of the file."""
    addresses = {id(tensor) for tensor in filled}
    missing = [
        name for name, parameter in model.named_parameters() if id(parameter) not in addresses
    ]
    if missing or len(addresses) != len(filled):
        raise RuntimeError(
            f"keras_layers of {type(model).__name__} misses or repeats {first_five(missing)}."
        )


def read_keras_layers(path: Path) -> list[KerasLayer]:
    """All layers with weights of a Keras file.

    Raises:
        InputError: missing, truncated, not HDF5 or not Keras'.
    """
    if not path.is_file():
        raise InputError(f"There is no weights file {path}. Check the path.")
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                names = _names_of_config(json.loads(archive.read("config.json")))
                with h5py.File(io.BytesIO(archive.read("model.weights.h5")), "r") as file:
                    return _read_keras3(file, names)
        with h5py.File(path, "r") as file:
            return _read_keras3(file, {}) if "layers" in file else _read_keras2(file)
    except (
        OSError,
        KeyError,
        ValueError,
        RuntimeError,
        TypeError,
        AttributeError,
        zipfile.BadZipFile,
    ) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"{path} is not a whole Keras weights file ({reason}). Save or copy it again."
        ) from error


def _read_keras2(file: h5py.File) -> list[KerasLayer]:
    """Groups named in `layer_names`, at the root or in `model_weights`; each names its weights in `weight_names`."""
    root = file.get("model_weights", file)
    layers = []
    for name in _texts(root.attrs["layer_names"]):
        weights = [
            (_part_name(path), root[name][path][()])
            for path in _texts(root[name].attrs["weight_names"])
        ]
        if weights:
            layers.append(KerasLayer(name, weights))
    return layers


def _texts(names: np.ndarray) -> list[str]:
    return [name.decode() if isinstance(name, bytes) else str(name) for name in names]


def _part_name(path: str) -> str:
    """`block_3/attention_3/name1_qkv/kernel:0` -> `qkv/kernel`; `conv2d_4/kernel:0` -> `kernel`.

    A layer inside a layer is the one whose name the baseline begins with `name<n>_`, or any other below the first.
    """
    parts = path.removesuffix(":0").split("/")
    inner = [re.sub(r"^name\d+_", "", part) for part in parts[1:]]
    named = [i for i, part in enumerate(parts[1:]) if re.match(r"name\d+_", part)]
    return "/".join(inner[named[0] :]) if named else "/".join(inner[-2:])


def _read_keras3(file: h5py.File, names: dict[str, str]) -> list[KerasLayer]:
    """Groups `layers/<class>_<n>/vars/<i>`, where n follows the order of layers; the true name is an attribute.

    A part of a layer of layers stands between: `layers/<class>_<n>/<attribute>/vars/<i>`.

    Args:
        file: the open weights.
        names: group name -> layer name, for files of early Keras 3 whose weights do not tell it.
    """
    layers = []
    for group_name, group in file["layers"].items():
        found = _list_datasets(group)
        weights = {
            path: re.fullmatch(r"(.+/)?vars/(\d+)", path)
            for path in found
            if "seed_generator" not in path
        }
        if not weights:
            continue
        if None in weights.values():
            raise ValueError(f"layer {group_name} is not laid out as Keras lays out layers")
        name = group["vars"].attrs.get("name", names.get(group_name))
        if name is None:
            raise ValueError("it does not name its layers: save it as .keras or .h5")
        arrays = [((match[1] or "") + match[2], group[path][()]) for path, match in weights.items()]
        layers.append(KerasLayer(str(name), arrays))
    return layers


def _names_of_config(config: dict) -> dict[str, str]:
    """Group name -> layer name: Keras 3 numbers the layers of a class in the order of the configuration."""
    names, counts = {}, defaultdict(int)
    for layer in config["config"]["layers"]:
        words = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", layer["class_name"])
        snake = re.sub(r"([a-z])([A-Z])", r"\1_\2", words).lower()
        names[f"{snake}_{counts[snake]}" if counts[snake] else snake] = layer["config"]["name"]
        counts[snake] += 1
    return names


def _list_datasets(group: h5py.Group) -> list[str]:
    """Paths of all datasets below a group."""
    paths: list[str] = []

    def visit(path: str, item: object) -> None:
        if isinstance(item, h5py.Dataset):
            paths.append(path)

    group.visititems(visit)
    return paths
