"""What runs a trained network: torch, compiled torch, ONNX Runtime or OpenVINO.

A new one is an entry in `ENGINES`. `ovseg.inference.engine_choice` uses an engine only where its
probabilities are torch's.
"""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from ovseg.core.errors import InputError
from ovseg.core.registry import choose
from ovseg.inference.onnx import export_onnx
from ovseg.inference.packing import pack_weights

OPENVINO_METADATA = "made_by_ovseg"  # the section of a file's own information

# From plain pixels, uint8 (N, 3, H, W), to logits, (N, classes, H, W), for any N.
Engine = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class EngineKind:
    """An entry of `ENGINES`.

    Attributes:
        build: makes the engine from a network in evaluation mode and pictures, uint8 (N, 3, H, W),
            of the size to come on the network's device; raises InputError where a package is
            missing.
        cpu_only: it can't run on another device.
        package: that it needs beside torch.
        build_seconds: about what building it takes for the baseline's network on two cores.
    """

    build: Callable[[torch.nn.Module, Tensor], Engine]
    cpu_only: bool = False
    package: str | None = None
    build_seconds: float = 0.0


def build_engine(name: str, network: torch.nn.Module, image: Tensor) -> Engine:
    """Build an engine; the caller compares it with torch.

    Args:
        name: key of `ENGINES`.
        network: in evaluation mode.
        image: pictures of the size to come, uint8 (N, 3, H, W), on the network's device.

    Raises:
        InputError: the name is unknown, or a package is missing.
    """
    kind: EngineKind = choose("engine", name, ENGINES)
    return kind.build(network, image)


def arrange_for_inference(network: torch.nn.Module, device: torch.device) -> torch.nn.Module:
    """A network in evaluation mode, in the memory format in which it predicts fastest.

    On a CPU that is channels_last: all architectures are as fast or faster than with contiguous
    weights, up to 1.7 times (docs/speed.md). The numbers differ by float rounding.
    """
    network.eval()
    if device.type == "cpu":
        network.to(memory_format=torch.channels_last)
    return network


def _build_torch(network: torch.nn.Module, image: Tensor) -> Engine:
    return pack_weights(network, image)


def _build_compiled(network: torch.nn.Module, image: Tensor) -> Engine:
    if image.device.type != "cuda":
        return torch.compile(network)
    compiled = torch.compile(network, mode="reduce-overhead")

    def run(image: Tensor) -> Tensor:
        # The next call overwrites the memory of this result (CUDA graphs), so hand out a copy.
        return compiled(image).clone()

    return run


def _export_and_open(
    network: torch.nn.Module,
    image: Tensor,
    open_file: Callable[[Path], tuple[Engine, dict[str, str], int]],
) -> Engine:
    """An engine that reads ONNX, of a file that is removed at once."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.onnx"
        export_onnx(network, image, path)
        return open_file(path)[0]


def _build_onnxruntime(network: torch.nn.Module, image: Tensor) -> Engine:
    _import_onnxruntime()  # before the exporter, whose missing package would be named instead
    return _export_and_open(network, image, open_onnx)


def open_onnx(path: Path) -> tuple[Engine, dict[str, str], int]:
    """Open a file that `ovseg.inference.onnx.export_onnx` wrote in ONNX Runtime on the CPU.

    Returns:
        The engine, the file's metadata, and its number of classes.

    Raises:
        InputError: the package is missing, or the file is damaged.
    """
    onnxruntime = _import_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    # ONNX Runtime has an exception of its own for each kind of damage.
    except Exception as error:
        raise InputError(f"{path} can't be read by ONNX Runtime ({error}).") from None

    def run(image: Tensor) -> Tensor:
        outputs = session.run(None, {"image": image.numpy()})
        return torch.from_numpy(outputs[0])

    classes = session.get_outputs()[0].shape[1]
    return run, session.get_modelmeta().custom_metadata_map, classes


def _import_onnxruntime() -> ModuleType:
    try:
        import onnxruntime
    except ImportError:
        raise InputError("This needs ONNX Runtime: pip install 'ovseg[onnx]'.") from None
    return onnxruntime


def _build_openvino(network: torch.nn.Module, image: Tensor) -> Engine:
    _import_openvino()
    return _export_and_open(network, image, open_openvino)


def open_openvino(path: Path) -> tuple[Engine, dict[str, str], int]:
    """Open a file of OpenVINO (.xml) or ONNX in OpenVINO on the CPU.

    Returns:
        The engine, the metadata that `convert_to_openvino` kept in the file, and its number of
        classes.

    Raises:
        InputError: the package is missing, or the file is damaged.
    """
    openvino = _import_openvino()
    options = {
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
    }
    core = openvino.Core()
    try:
        model = core.read_model(path)
        compiled = core.compile_model(model, "CPU", options)
    except RuntimeError as error:
        raise InputError(f"{path} can't be read by OpenVINO ({error}).") from None

    def run(image: Tensor) -> Tensor:
        outputs = compiled([image.numpy()])
        return torch.from_numpy(outputs[0])

    metadata = {}
    if model.has_rt_info(OPENVINO_METADATA):
        for name, value in model.get_rt_info(OPENVINO_METADATA).value.items():
            metadata[name] = value
    return run, metadata, model.output(0).get_partial_shape()[1].get_max_length()


def convert_to_openvino(onnx_path: Path, path: Path, metadata: dict[str, str]) -> None:
    """Write an ONNX file as one of OpenVINO, .xml with a .bin beside it.

    Raises:
        InputError: the package is missing.
    """
    openvino = _import_openvino()
    model = openvino.convert_model(onnx_path)
    for name, value in metadata.items():
        model.set_rt_info(value, [OPENVINO_METADATA, name])
    openvino.save_model(model, path, compress_to_fp16=False)


def _import_openvino() -> ModuleType:
    try:
        import openvino
    except ImportError:
        raise InputError("This needs OpenVINO: pip install 'ovseg[onnx,openvino]'.") from None
    return openvino


ENGINES = {
    "torch": EngineKind(_build_torch),
    "compile": EngineKind(_build_compiled, build_seconds=20),
    "onnxruntime": EngineKind(
        _build_onnxruntime, cpu_only=True, package="onnxruntime", build_seconds=5
    ),
    "openvino": EngineKind(_build_openvino, cpu_only=True, package="openvino", build_seconds=5),
}
