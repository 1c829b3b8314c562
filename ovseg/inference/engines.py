"""What runs a trained network: torch, compiled torch, ONNX Runtime or OpenVINO, chosen by a short calibration."""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ovseg.core.console import print_table
from ovseg.core.errors import InputError
from ovseg.core.registry import choose
from ovseg.inference.onnx import export_onnx

Engine = Callable[[Tensor], Tensor]
TOLERANCE = 1e-4  # of probabilities, against torch


def build_engine(name: str, network: torch.nn.Module, image: Tensor) -> Engine:
    """A function from plain pixels, uint8 (N, 3, H, W), to logits, that gives what the network gives.

    Args:
        name: a key of `ENGINES`.
        network: in evaluation mode.
        image: pictures of the size to come, on the network's device.

    Raises:
        InputError: unknown name, or a package is missing.
    """
    return choose("engine", name, ENGINES)(network, image)


def calibrate(
    network: torch.nn.Module, image: Tensor, repeats: int = 3
) -> tuple[str, Engine, list[tuple]]:
    """The fastest engine on this machine whose probabilities are torch's.

    Args:
        network: in evaluation mode.
        image: a few real pictures, uint8 (N, 3, H, W), on the network's device; logits of noise prove less.
        repeats: timed runs of each engine after one warm-up; the fastest counts.

    Returns:
        Its name, itself, and a row each for a table: name, seconds a batch, largest difference of a probability,
        remark.
    """
    rows, engines = [], {}
    names = [name for name in ENGINES if image.device.type == "cpu" or name not in ON_CPU_ONLY]
    with torch.inference_mode():
        reference = network(image)
        for name in names:
            try:
                engine = build_engine(name, network, image)
                gap = largest_gap(engine(image), reference)
            except (InputError, RuntimeError) as error:
                rows.append((name, "", "", str(error).splitlines()[0]))
                continue
            if gap <= TOLERANCE:  # not so where it is not a number
                engines[name] = (min(_seconds(engine, image) for _ in range(repeats)), engine)
            rows.append((name, *_texts(engines.get(name), gap)))
    best = min(engines, key=lambda name: engines[name][0])
    return best, engines[best][1], rows


def choose_engine(
    name: str, network: torch.nn.Module, image: Tensor, report: Callable[[list[tuple]], None]
) -> Engine:
    """An engine by name, checked against torch; `auto` calibrates and hands the table to `report`.

    Raises:
        InputError: unknown name, a package is missing, or the engine's probabilities are not torch's.
    """
    if name == "auto":
        best, engine, rows = calibrate(network, image)
        report([(*row[:3], "chosen" if row[0] == best else row[3]) for row in rows])
        return engine
    if image.device.type != "cpu" and name in ON_CPU_ONLY:
        raise InputError(
            f"--engine {name} runs on the CPU, not on {image.device}. Add --device cpu."
        )
    with torch.inference_mode():
        engine = build_engine(name, network, image)
        gap = largest_gap(engine(image), network(image))
    if not gap <= TOLERANCE:
        raise InputError(
            f"--engine {name} is {gap:.2g} off torch's probabilities, expected {TOLERANCE}. Use torch."
        )
    return engine


def largest_gap(logits: Tensor, reference: Tensor) -> float:
    """The largest difference of a probability between two maps of logits of one shape."""
    return (logits.float().sigmoid() - reference.float().sigmoid()).abs().max().item()


def print_engines(rows: list[tuple]) -> None:
    """The table of `calibrate` in the terminal."""
    print_table(("engine", "s a batch", "difference", ""), rows, "engines on this machine")


def _texts(measured: tuple[float, Engine] | None, gap: float) -> tuple[str, str, str]:
    if measured is None:
        return "", f"{gap:.1e}", f"not used: it differs by more than {TOLERANCE}"
    return f"{measured[0]:.3f}", f"{gap:.1e}", ""


def _seconds(engine: Engine, image: Tensor) -> float:
    began = time.perf_counter()
    engine(image).sum().item()  # waits for a GPU
    return time.perf_counter() - began


def _torch(network: torch.nn.Module, image: Tensor) -> Engine:
    return network


def _compile(network: torch.nn.Module, image: Tensor) -> Engine:
    return torch.compile(
        network, mode="reduce-overhead" if image.device.type == "cuda" else "default"
    )


def open_onnx(path: Path) -> Engine:
    """A file that `ovseg.inference.onnx.export_onnx` wrote, run by ONNX Runtime on the CPU.

    Raises:
        InputError: the package is missing.
    """
    onnxruntime = _import_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda image: torch.from_numpy(session.run(None, {"image": image.numpy()})[0])


def _import_onnxruntime() -> Any:
    try:
        import onnxruntime
    except ImportError:
        raise InputError("This engine needs ONNX Runtime: pip install 'ovseg[onnx]'.") from None
    return onnxruntime


def _onnxruntime(network: torch.nn.Module, image: Tensor) -> Engine:
    _import_onnxruntime()  # or the exporter's missing package would be told
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.onnx"
        export_onnx(network, image, path)
        return open_onnx(path)


def _openvino(network: torch.nn.Module, image: Tensor) -> Engine:
    try:
        import openvino
    except ImportError:
        raise InputError(
            "This engine needs OpenVINO: pip install 'ovseg[onnx,openvino]'."
        ) from None
    options = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "INFERENCE_PRECISION_HINT": "f32"}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.onnx"
        export_onnx(network, image, path)
        model = openvino.Core().compile_model(
            path, "CPU", {**options, "PERFORMANCE_HINT": "LATENCY"}
        )
    return lambda image: torch.from_numpy(model([image.numpy()])[0])


ENGINES: dict[str, Callable[[torch.nn.Module, Tensor], Engine]] = {
    "torch": _torch,
    "compile": _compile,
    "onnxruntime": _onnxruntime,
    "openvino": _openvino,
}
ON_CPU_ONLY = ("onnxruntime", "openvino")
