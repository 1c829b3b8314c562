"""Files of a network that `ovseg export` writes, and how they are opened again.

A file takes plain pixels, uint8 (N, 3, H, W), and gives probabilities, float32 (N, classes, H, W);
one of safetensors holds the weights alone. Its metadata say what is done around the network, and
`model.json` beside it repeats them for people.
"""

import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from msgspec import Meta, Struct
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from ovseg.core.checkpoints import ImageSize, fill_network
from ovseg.core.errors import InputError, first_five
from ovseg.core.limits import MAX_CLASSES
from ovseg.core.registry import choose
from ovseg.core.runs import DESCRIPTION_FILE
from ovseg.core.schema import find_problem
from ovseg.data.boxes import FITS
from ovseg.inference.engines import Engine, convert_to_openvino, open_onnx, open_openvino
from ovseg.inference.labels import Postprocessing
from ovseg.inference.onnx import export_onnx
from ovseg.inference.postprocessing import PostprocessingEntry, to_probs
from ovseg.inference.quantise import quantise_onnx
from ovseg.models import build_model
from ovseg.models.same_padding import fix_same_padding

METADATA = "ovseg"  # the key of the description in a file
OUTPUT = "probabilities"
PRECISIONS = ("float32", "float16", "int8")


class NetworkEntry(Struct):
    """The network's constructor."""

    arch: str
    arch_args: dict[str, Any] = {}


class ModelDescription(Struct):
    """What is read of a file's description."""

    checkpoint_sha256: str
    dataset: str
    network: NetworkEntry
    image_size: ImageSize
    fit: str
    categories: Annotated[list[str], Meta(min_length=2, max_length=MAX_CLASSES)]
    postprocessing: PostprocessingEntry


class ModelFile:
    """A file that was opened, and whose description was not checked yet.

    Attributes:
        text: of the description, JSON.
        build: makes the network of the checked description, from plain pixels to logits, and says
            how many classes it has; raises InputError.
    """

    def __init__(self, text: str, build: Callable[[dict[str, Any]], tuple[nn.Module, int]]):
        self.text = text
        self.build = build


@dataclass(frozen=True)
class ModelFormat:
    """An entry of `FORMATS`.

    Attributes:
        file_name: of the network in the model's folder.
        write: writes it from the network; pictures of validation in its square, uint8 (S, S, 3),
            on which int8 is calibrated; the path; and the description, whose `precision` is that of
            the weights. It raises InputError where a package is missing.
        open: opens it on the CPU; raises InputError where the file is damaged.
        precisions: of its weights.
    """

    file_name: str
    write: Callable[[nn.Module, Sequence[np.ndarray], Path, dict[str, Any]], None]
    open: Callable[[Path], ModelFile]
    precisions: tuple[str, ...]


class WithProbabilities(nn.Module):
    """A network for any size that gives probabilities, see `postprocessing.to_probs`."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = fix_same_padding(network)

    def forward(self, image: Tensor) -> Tensor:
        return to_probs(self.network(image))


class FromProbabilities(nn.Module):
    """A network that gives logits, made of a file that gives probabilities."""

    def __init__(self, engine: Engine):
        super().__init__()
        self.engine = engine

    def forward(self, image: Tensor) -> Tensor:
        probs = self.engine(image)
        if probs.shape[1] == 1:
            return probs.logit()
        return probs.log()


def open_model(path: Path) -> tuple[nn.Module, dict[str, Any]]:
    """Open a file that `ovseg export` wrote, or the folder of one, on the CPU.

    Returns:
        The network, from plain pixels to logits, and the description, see `ModelDescription`.

    Raises:
        InputError: there is none, it is damaged or of another origin, or a package is missing.
    """
    file = find_model_file(path)
    opened = FORMATS[SUFFIXES[file.suffix]].open(file)
    remedy = "Write it with ovseg export."
    try:
        description = json.loads(opened.text or "null")
    except (ValueError, RecursionError):
        description = None
    problem = find_problem(description, ModelDescription)
    if problem:
        raise InputError(f"The metadata of {file} are not of ovseg export ({problem}). {remedy}")
    try:
        choose("fit", description["fit"], FITS)
        Postprocessing(**description["postprocessing"])
        network, classes = opened.build(description)
    except InputError as error:
        raise InputError(f"{file} can't be used: {error}") from error
    _check_classes(file, classes, description["categories"])
    return network.eval(), description


def _check_classes(file: Path, classes: int, categories: Sequence[str]) -> None:
    """Refuse a file whose network has another number of classes than its metadata name.

    The background is one of several classes; a network of one class has a lesion alone.
    """
    expected = {len(categories)}
    if len(categories) == 2:
        expected.add(1)
    if classes not in expected:
        raise InputError(
            f"The network of {file} has {classes} classes, but its metadata name "
            f"{len(categories)}: {first_five(categories)}. Write it with ovseg export."
        )


def is_model(path: Path) -> bool:
    """Whether a path is a file that `ovseg export` may have written, or the folder of one."""
    if path.is_file():
        return path.suffix in SUFFIXES
    return (path / DESCRIPTION_FILE).is_file()


def find_model_file(path: Path) -> Path:
    """The network's file of what a user names: the file itself, or the folder it lies in.

    Raises:
        InputError: there is none, or several.
    """
    if path.is_file():
        return path
    named = [path / kind.file_name for kind in FORMATS.values()]
    found = [file for file in named if file.is_file()]
    if len(found) != 1:
        names = first_five(file.name for file in named)
        raise InputError(f"{path} holds {len(found)} of {names}, expected one of them.")
    return found[0]


def _write_onnx(
    network: nn.Module, squares: Sequence[np.ndarray], path: Path, description: dict[str, Any]
) -> None:
    metadata = {METADATA: json.dumps(description)}
    image = torch.from_numpy(squares[0]).permute(2, 0, 1)[None]
    if description["precision"] != "int8":
        export_onnx(WithProbabilities(network), image, path, metadata, OUTPUT, free_size=True)
        return
    with tempfile.TemporaryDirectory() as folder:
        exact = Path(folder) / "exact.onnx"
        export_onnx(WithProbabilities(network), image, exact, metadata, OUTPUT, free_size=True)
        quantise_onnx(exact, path, squares)


def _open_onnx(path: Path) -> ModelFile:
    return _of_engine(*open_onnx(path))


def _write_openvino(
    network: nn.Module, squares: Sequence[np.ndarray], path: Path, description: dict[str, Any]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        onnx_path = Path(folder) / "model.onnx"
        _write_onnx(network, squares, onnx_path, description)
        convert_to_openvino(onnx_path, path, {METADATA: json.dumps(description)})


def _open_openvino(path: Path) -> ModelFile:
    return _of_engine(*open_openvino(path))


def _of_engine(engine: Engine, metadata: dict[str, str], classes: int) -> ModelFile:
    network = FromProbabilities(engine)
    return ModelFile(metadata.get(METADATA, ""), lambda description: (network, classes))


def _write_safetensors(
    network: nn.Module, squares: Sequence[np.ndarray], path: Path, description: dict[str, Any]
) -> None:
    state = {}
    for name, tensor in network.state_dict().items():
        # Norms and biases are few, and variances may be beyond float16.
        if description["precision"] == "float16" and tensor.ndim > 1:
            tensor = tensor.half()
        state[name] = tensor.contiguous()
    # `save_file` would make a file that nobody else can read.
    path.write_bytes(save(state, {METADATA: json.dumps(description)}))


def _open_safetensors(path: Path) -> ModelFile:
    try:
        with safe_open(path, "pt") as file:
            text = (file.metadata() or {}).get(METADATA, "")
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path} is no file of safetensors ({error}).") from None

    def build(description: dict[str, Any]) -> tuple[nn.Module, int]:
        entry = description["network"]
        arguments = entry.get("arch_args", {})
        if arguments.get("encoder_weights"):
            arguments = {**arguments, "encoder_weights": None}  # nothing is downloaded for a file
        network = build_model(entry["arch"], **arguments)
        fill_network(network, state, path)
        return network, arguments.get("classes", 1)

    return ModelFile(text, build)


FORMATS = {
    "onnx": ModelFormat("model.onnx", _write_onnx, _open_onnx, ("float32", "int8")),
    "openvino": ModelFormat("model.xml", _write_openvino, _open_openvino, ("float32", "int8")),
    "safetensors": ModelFormat(
        "model.safetensors", _write_safetensors, _open_safetensors, ("float32", "float16")
    ),
}
SUFFIXES = {Path(kind.file_name).suffix: name for name, kind in FORMATS.items()}
