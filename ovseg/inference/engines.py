"""What runs a trained network: torch, compiled torch, ONNX Runtime or OpenVINO.

An engine is used only where its probabilities are torch's. A new one is an entry in `ENGINES`.
"""

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from ovseg.core.console import print_table
from ovseg.core.errors import InputError
from ovseg.core.registry import choose
from ovseg.inference.onnx import export_onnx
from ovseg.inference.packing import pack_weights
from ovseg.inference.postprocessing import to_probs

# From plain pixels, uint8 (N, 3, H, W), to logits, (N, classes, H, W), for any N.
Engine = Callable[[Tensor], Tensor]

TOLERANCE = 1e-4  # largest difference of a probability from torch's that an engine may have


@dataclass(frozen=True)
class EngineKind:
    """An entry of `ENGINES`.

    Attributes:
        build: makes the engine from a network in evaluation mode and pictures, uint8 (N, 3, H, W),
            of the size to come on the network's device; raises InputError where a package is
            missing.
        cpu_only: it can't run on another device.
    """

    build: Callable[[torch.nn.Module, Tensor], Engine]
    cpu_only: bool = False


@dataclass(frozen=True)
class Trial:
    """What `calibrate` found out about one engine.

    Attributes:
        name: key of `ENGINES`.
        engine: None where it can't be used; `problem` says why.
        seconds: of the fastest batch; infinite where it can't be used.
        difference: largest difference of a probability from torch's; None where it could not be
            built.
        problem: why it can't be used, else empty.
    """

    name: str
    engine: Engine | None = None
    seconds: float = float("inf")
    difference: float | None = None
    problem: str = ""


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


def check_engine(name: str) -> None:
    """Raise InputError unless `name` is `auto` or a key of `ENGINES`."""
    choose("engine", name, {"auto": None, **ENGINES})


def choose_engine(name: str, network: torch.nn.Module, image: Tensor) -> Engine:
    """Build an engine and compare it with torch; `auto` takes the fastest and prints a table.

    Args:
        name: `auto` or a key of `ENGINES`.
        network: in evaluation mode.
        image: a few real pictures of the size to come, uint8 (N, 3, H, W), on the network's device.

    Raises:
        InputError: the name is unknown, a package is missing, the engine does not run on this
            device, or its probabilities are not torch's.
    """
    if name == "auto":
        best, trials = calibrate(network, image)
        print_trials(trials, chosen=best.name)
        if best.engine is None:
            raise InputError(f"No engine can be used. {best.name}: {best.problem}.")
        return best.engine

    kind: EngineKind = choose("engine", name, ENGINES)
    if kind.cpu_only and image.device.type != "cpu":
        raise InputError(
            f"--engine {name} runs on the CPU, not on {image.device}. Add --device cpu."
        )
    with torch.inference_mode():
        engine = kind.build(network, image)
        difference = largest_difference(engine(image), network(image))
    if not is_close(difference):
        raise InputError(
            f"--engine {name} is {difference:.2g} off torch's probabilities, expected {TOLERANCE}. "
            "Use --engine torch."
        )
    return engine


def calibrate(
    network: torch.nn.Module, image: Tensor, repeats: int = 3
) -> tuple[Trial, list[Trial]]:
    """Find the fastest engine on this machine whose probabilities are torch's.

    Args:
        network: in evaluation mode.
        image: a few real pictures, uint8 (N, 3, H, W), on the network's device; logits of noise
            prove less.
        repeats: timed runs of each engine after one warm-up; the fastest counts.

    Returns:
        The fastest, and all that were tried. Where none can be used the first takes its place.
    """
    trials = []
    with torch.inference_mode():
        reference = network(image)
        for name, kind in ENGINES.items():
            if kind.cpu_only and image.device.type != "cpu":
                continue
            trials.append(_try_engine(name, network, image, reference, repeats))
    best = min(trials, key=lambda trial: trial.seconds)
    return best, trials


def _try_engine(
    name: str, network: torch.nn.Module, image: Tensor, reference: Tensor, repeats: int
) -> Trial:
    """Compare an engine with the logits of torch, and time it where they agree."""
    try:
        engine = build_engine(name, network, image)
        difference = largest_difference(engine(image), reference)
    except (InputError, RuntimeError) as error:
        return Trial(name, problem=str(error).splitlines()[0])
    if not is_close(difference):
        problem = f"not used: it differs by more than {TOLERANCE}"
        return Trial(name, difference=difference, problem=problem)
    seconds = min(_time_batch(engine, image) for _ in range(repeats))
    return Trial(name, engine, seconds, difference)


def _time_batch(engine: Engine, image: Tensor) -> float:
    """Seconds that a batch takes."""
    began = time.perf_counter()
    engine(image).sum().item()  # waits for a GPU
    return time.perf_counter() - began


def print_trials(trials: list[Trial], chosen: str) -> None:
    """Print what `calibrate` found as a table on the terminal."""
    rows = []
    for trial in trials:
        seconds = ""
        difference = ""
        remark = trial.problem
        if trial.engine is not None:
            seconds = f"{trial.seconds:.3f}"
        if trial.difference is not None:
            difference = f"{trial.difference:.1e}"
        if trial.name == chosen and not trial.problem:
            remark = "chosen"
        rows.append((trial.name, seconds, difference, remark))
    print_table(("engine", "s a batch", "difference", ""), rows, "engines on this machine")


def largest_difference(logits: Tensor, reference: Tensor) -> float:
    """The largest difference of a probability between two maps of logits (N, classes, H, W).

    NaN where either holds NaN.
    """
    difference = to_probs(logits) - to_probs(reference)
    return difference.abs().max().item()


def is_close(difference: float) -> bool:
    """Whether a difference of probabilities is at most `TOLERANCE`; NaN is not."""
    return difference <= TOLERANCE


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


def _build_onnxruntime(network: torch.nn.Module, image: Tensor) -> Engine:
    _import_onnxruntime()  # before the exporter, whose missing package would be named instead
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.onnx"
        export_onnx(network, image, path)
        return open_onnx(path)


def open_onnx(path: Path) -> Engine:
    """Open a file that `ovseg.inference.onnx.export_onnx` wrote in ONNX Runtime on the CPU.

    Raises:
        InputError: the package is missing.
    """
    onnxruntime = _import_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def run(image: Tensor) -> Tensor:
        outputs = session.run(None, {"image": image.numpy()})
        return torch.from_numpy(outputs[0])

    return run


def _import_onnxruntime() -> ModuleType:
    try:
        import onnxruntime
    except ImportError:
        raise InputError("This engine needs ONNX Runtime: pip install 'ovseg[onnx]'.") from None
    return onnxruntime


def _build_openvino(network: torch.nn.Module, image: Tensor) -> Engine:
    try:
        import openvino
    except ImportError:
        raise InputError(
            "This engine needs OpenVINO: pip install 'ovseg[onnx,openvino]'."
        ) from None
    options = {
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.onnx"
        export_onnx(network, image, path)
        model = openvino.Core().compile_model(path, "CPU", options)

    def run(image: Tensor) -> Tensor:
        outputs = model([image.numpy()])
        return torch.from_numpy(outputs[0])

    return run


ENGINES = {
    "torch": EngineKind(_build_torch),
    "compile": EngineKind(_build_compiled),
    "onnxruntime": EngineKind(_build_onnxruntime, cpu_only=True),
    "openvino": EngineKind(_build_openvino, cpu_only=True),
}
