"""Load a Keras weights file into a network.

Loading is strict: every weight of the file is used once, every parameter of the network is filled.

Keras names a layer by its class and a running number (`conv2d_37`). The numbers follow the order in
which the layers were created, whatever the first number is. Each ported network lists its modules
in the same order: `keras_layers()` yields pairs of a Keras name without number and a module. A
module that is a single Keras layer made of several, such as a Swin block, lists them in
`keras_parts()`: Keras name -> module or tensor.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from ovseg.baseline.keras_reader import KerasLayer, read_keras_layers
from ovseg.core.errors import InputError, first_five

# Keras keeps depthwise kernels as (height, width, channels, 1), torch as (channels, 1, height,
# width).
_DEPTHWISE_AXES = (2, 3, 0, 1)

# Attributes of keras-unet-collection's layers and of Keras' attention, which Keras 3 files use, ->
# names in the baseline's Keras 2 files.
_KERAS3_PARTS = {
    "attn": "attn_pos",
    "attn/qkv": "attn_qkv",
    "attn/proj": "attn_proj",
    "mlp/fc1": "mlp_0",
    "mlp/fc2": "mlp_1",
    "proj": "dense",
    "pos_embed": "embedding",
    "query_dense": "query",
    "key_dense": "key",
    "value_dense": "value",
    "output_dense": "attention_output",
}


@runtime_checkable
class KerasPort(Protocol):
    """A network that was ported from the baseline."""

    def keras_layers(self) -> Iterable[tuple[str, nn.Module]]: ...


@runtime_checkable
class KerasBlock(Protocol):
    """A module that is one layer in Keras and holds several."""

    def keras_parts(self) -> Mapping[str, nn.Module | Tensor]: ...


@dataclass(frozen=True)
class Target:
    """A tensor of the network that a Keras weight fills.

    Attributes:
        name: of the Keras weight inside its layer, such as `kernel` or `qkv/kernel`.
        tensor: a parameter or buffer.
        axes: `array.transpose(axes)` turns Keras' array into the tensor's layout.
    """

    name: str
    tensor: Tensor
    axes: tuple[int, ...]

    @property
    def keras_shape(self) -> tuple[int, ...]:
        """The shape of the array in a Keras file."""
        shape = [0] * len(self.axes)
        for ours, theirs in enumerate(self.axes):
            shape[theirs] = self.tensor.shape[ours]
        return tuple(shape)


def load_keras_weights(model: nn.Module, path: Path) -> None:
    """Fill a network with the weights of a Keras file; nothing is changed unless everything fits.

    Args:
        model: a network with `keras_layers`.
        path: Keras 2 `.h5`, whole model or weights only; Keras 3 `.keras` or `.weights.h5`.

    Raises:
        InputError: the file is not a Keras file, or its layers differ from the network's; the
            message names both.
    """
    if not isinstance(model, KerasPort):
        raise InputError(
            f"{type(model).__name__} is not a network of the TensorFlow baseline: "
            "no Keras weights fit it."
        )
    path = Path(path)
    theirs: dict[str, list[KerasLayer]] = defaultdict(list)
    for layer in sorted(read_keras_layers(path), key=lambda layer: layer.number):
        theirs[layer.stem].append(layer)
    ours: dict[str, list[nn.Module]] = defaultdict(list)
    for stem, module in model.keras_layers():
        ours[stem].append(module)
    _check_counts(path, model, theirs, ours)

    filled: list[tuple[Tensor, Tensor]] = []
    for stem, modules in ours.items():
        for layer, module in zip(theirs[stem], modules, strict=True):
            filled += _match(path, layer, module)
    _check_all_filled(model, [tensor for tensor, _ in filled])
    with torch.no_grad():
        for tensor, values in filled:
            tensor.copy_(values)


def _check_counts(
    path: Path,
    model: nn.Module,
    theirs: dict[str, list[KerasLayer]],
    ours: dict[str, list[nn.Module]],
) -> None:
    wrong = []
    for stem in sorted(ours.keys() | theirs.keys()):
        in_file = len(theirs[stem])
        in_network = len(ours[stem])
        if in_file != in_network:
            wrong.append(f"{stem}: {in_file} in the file, {in_network} in the network")
    if wrong:
        raise InputError(
            f"{path} is of another network than this {type(model).__name__}: {first_five(wrong)}."
        )


def _match(path: Path, layer: KerasLayer, module: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """Pairs of a tensor of the network and its new values, for one layer."""
    targets = keras_targets(module)
    arrays = dict(layer.weights)
    numbered = all(name.rpartition("/")[2].isdigit() for name in arrays)
    if numbered:
        has_parts = any("/" in name for name in arrays)
        if has_parts:
            targets = [target for target in targets if not _is_computed(module, target)]
        arrays = _name_weights(arrays, targets)
    else:
        arrays = _rename(arrays, targets)

    found = {name: tuple(array.shape) for name, array in arrays.items()}
    wanted = {target.name: target.keras_shape for target in targets}
    if found != wanted or len(layer.weights) != len(targets):
        raise InputError(
            f"{path}: layer {layer.name} holds {found}, the network expects {wanted}. "
            "Check its settings."
        )
    pairs = []
    for target in targets:
        array = np.array(arrays[target.name].transpose(target.axes), order="C")
        values = torch.from_numpy(array).to(target.tensor.dtype)
        pairs.append((target.tensor, values))
    return pairs


def _rename(arrays: dict[str, np.ndarray], targets: list[Target]) -> dict[str, np.ndarray]:
    """Name weights as the network does where Keras has two names for them.

    Keras counts the layers of a process, so a block of a network that was built twice has
    `dense_3/kernel` and no `dense/kernel`. What Keras 2 calls `depthwise_kernel`, Keras 3 calls
    `kernel` in .h5.
    """
    wanted = {target.name for target in targets}
    named = {}
    for name, array in arrays.items():
        plain = re.sub(r"_\d+/", "/", name)
        if name == "kernel":
            plain = "depthwise_kernel"
        if name not in wanted and plain in wanted:
            name = plain
        named[name] = array
    return named


def _is_computed(module: nn.Module, target: Target) -> bool:
    """Whether a tensor follows from a block's settings (positions, masks): Keras 3 saves none."""
    if not isinstance(module, KerasBlock):
        return False
    return any(target.tensor is buffer for buffer in module.buffers(recurse=False))


def _name_weights(arrays: dict[str, np.ndarray], targets: list[Target]) -> dict[str, np.ndarray]:
    """Name the weights that Keras 3 numbers: `0` of a layer, `attn/qkv/0` of a part of a block.

    Keras 3 names a part by its attribute. A weight that has no target keeps its number, so that the
    check of shapes names it.
    """
    named = {}
    for name, array in arrays.items():
        attribute, _, number = name.rpartition("/")
        part = _KERAS3_PARTS.get(attribute.lstrip("_"), attribute)
        candidates = targets
        if part:
            pattern = rf"(^|_){part}(/|$)"
            candidates = [target for target in targets if re.search(pattern, target.name)]
        if int(number) < len(candidates):
            name = candidates[int(number)].name
        named[name] = array
    return named


def keras_targets(module: nn.Module) -> list[Target]:
    """The tensors that a module's Keras layer fills, in Keras' order of weights.

    A weight of a part of a block (see `KerasBlock`) is called `part/weight`, a part that is a
    tensor just `part`.
    """
    if isinstance(module, KerasBlock):
        return _block_targets(module)
    if isinstance(module, nn.Embedding):
        return [Target("embeddings", module.weight, (0, 1))]
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
        return _kernel_targets(module)
    if isinstance(module, nn.BatchNorm2d | nn.LayerNorm):
        return _norm_targets(module)
    raise TypeError(f"{type(module).__name__} has no counterpart in Keras.")


def _block_targets(block: KerasBlock) -> list[Target]:
    targets = []
    for name, part in block.keras_parts().items():
        if isinstance(part, Tensor):
            targets.append(Target(name, part, tuple(range(part.ndim))))
            continue
        for target in keras_targets(part):
            targets.append(Target(f"{name}/{target.name}", target.tensor, target.axes))
    return targets


def _kernel_targets(module: nn.Conv2d | nn.ConvTranspose2d | nn.Linear) -> list[Target]:
    """Kernel and bias.

    Keras keeps kernels as (height, width, in, out), and as (height, width, out, in) where the
    convolution is transposed.
    """
    if isinstance(module, nn.Linear):
        kernel = Target("kernel", module.weight, (1, 0))
    elif isinstance(module, nn.Conv2d) and module.groups > 1:
        kernel = Target("depthwise_kernel", module.weight, _DEPTHWISE_AXES)
    else:
        kernel = Target("kernel", module.weight, (3, 2, 0, 1))
    if module.bias is None:
        return [kernel]
    return [kernel, Target("bias", module.bias, (0,))]


def _norm_targets(module: nn.BatchNorm2d | nn.LayerNorm) -> list[Target]:
    named: dict[str, Tensor | None] = {"gamma": module.weight, "beta": module.bias}
    if isinstance(module, nn.BatchNorm2d):
        named["moving_mean"] = module.running_mean
        named["moving_variance"] = module.running_var
    return [Target(name, tensor, (0,)) for name, tensor in named.items() if tensor is not None]


def _check_all_filled(model: nn.Module, filled: list[Tensor]) -> None:
    """Raise where a port lists a module twice or not at all: that is our defect, not the file's."""
    addresses = {id(tensor) for tensor in filled}
    missing = []
    for name, parameter in model.named_parameters():
        if id(parameter) not in addresses:
            missing.append(name)
    if missing or len(addresses) != len(filled):
        raise RuntimeError(
            f"keras_layers of {type(model).__name__} misses or repeats {first_five(missing)}."
        )
