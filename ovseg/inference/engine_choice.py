"""Which engine runs a network: the one that is asked for, or with `auto` the fastest here.

An engine is used only where its probabilities are torch's. What `auto` found is remembered for this
machine, network and size of pictures.
"""

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ovseg.core.console import print_table
from ovseg.core.errors import InputError
from ovseg.core.files import content_digest, write_json
from ovseg.core.processes import processor_name
from ovseg.core.registry import choose
from ovseg.core.versions import module_versions
from ovseg.inference.engines import ENGINES, Engine, EngineKind, build_engine
from ovseg.inference.postprocessing import to_probs

TOLERANCE = 1e-4  # largest difference of a probability from torch's that an engine may have
# An engine is not tried where building it takes longer than it would save if it took half of
# torch's time; none has saved more (docs/speed.md).
LARGEST_GAIN = 0.5
MEMORY_FILE = "engines.json"


@dataclass(frozen=True)
class Trial:
    """What `try_engines` found out about one engine.

    Attributes:
        name: key of `ENGINES`.
        engine: None where it can't be used or was not tried; `problem` says why.
        seconds: of the fastest batch; infinite where there is no engine.
        difference: largest difference of a probability from torch's; None where it was not built.
        problem: why there is no engine, else empty.
        tried: whether it was.
    """

    name: str
    engine: Engine | None = None
    seconds: float = float("inf")
    difference: float | None = None
    problem: str = ""
    tried: bool = True


def check_engine(name: str) -> None:
    """Raise InputError unless `name` is `auto` or a key of `ENGINES`."""
    choose("engine", name, {"auto": None, **ENGINES})


def choose_engine(
    name: str, network: nn.Module, image: Tensor, pictures: int | None = None
) -> Engine:
    """Build an engine and compare it with torch; `auto` takes the fastest and prints a table.

    Args:
        name: `auto` or a key of `ENGINES`.
        network: in evaluation mode.
        image: a few real pictures of the size to come, uint8 (N, 3, H, W), on the network's device.
        pictures: how many are to come; None for many.

    Raises:
        InputError: the name is unknown, a package is missing, the engine does not run on this
            device, or its probabilities are not torch's.
    """
    if name == "auto":
        return _choose_fastest(network, image, pictures)

    kind: EngineKind = choose("engine", name, ENGINES)
    if kind.cpu_only and image.device.type != "cpu":
        raise InputError(
            f"--engine {name} runs on the CPU, not on {image.device}. Add --device cpu."
        )
    with torch.inference_mode():
        trial = _try_engine(name, network, image, network(image), repeats=0)
    if trial.engine is None:
        raise InputError(f"--engine {name} can't be used: {trial.problem}")
    return trial.engine


def _choose_fastest(network: nn.Module, image: Tensor, pictures: int | None) -> Engine:
    path = memory_path()
    key = content_digest(describe_situation(network, image))
    fastest = _read_memory(path).get(key)
    trials = try_engines(network, image, pictures, fastest)
    best = min(trials, key=lambda trial: trial.seconds)
    print_trials(trials, chosen=best.name)
    if best.engine is None:
        raise InputError(f"No engine can be used. {best.name}: {best.problem}")
    if fastest is None and all(trial.tried for trial in trials):
        _remember(path, key, best.name)
    return best.engine


def try_engines(
    network: nn.Module,
    image: Tensor,
    pictures: int | None = None,
    fastest: str | None = None,
    repeats: int = 3,
) -> list[Trial]:
    """Time the engines on this machine whose probabilities are torch's.

    Args:
        network: in evaluation mode.
        image: a few real pictures, uint8 (N, 3, H, W), on the network's device; logits of noise
            prove less.
        pictures: how many are to come; None for many. Engines that can't save what it takes to
            build them are not tried.
        fastest: the engine that was the fastest before; only torch and that are tried.
        repeats: timed runs of each engine after one warm-up; the fastest counts.

    Returns:
        torch, and the others that run on this device.
    """
    with torch.inference_mode():
        reference = network(image)
        of_torch = _try_engine("torch", network, image, reference, repeats)
        trials = [of_torch]
        for name, kind in ENGINES.items():
            if name == "torch" or (kind.cpu_only and image.device.type != "cpu"):
                continue
            problem = _reason_to_skip(name, of_torch.seconds / len(image), pictures, fastest)
            if problem:
                trials.append(Trial(name, problem=problem, tried=False))
            else:
                trials.append(_try_engine(name, network, image, reference, repeats))
    return trials


def _reason_to_skip(name: str, seconds: float, pictures: int | None, fastest: str | None) -> str:
    """Why an engine is not worth a trial, where torch takes some seconds a picture."""
    if fastest is not None and name != fastest:
        return f"not tried: {fastest} was the fastest before"
    if pictures is None:
        return ""
    needed = ENGINES[name].build_seconds
    if LARGEST_GAIN * pictures * seconds < needed:
        return f"not tried: too few pictures to save the {needed:.0f} s of building it"
    return ""


def _try_engine(
    name: str, network: nn.Module, image: Tensor, reference: Tensor, repeats: int
) -> Trial:
    """Compare an engine with the logits of torch, and time it `repeats` times where they agree."""
    try:
        engine = build_engine(name, network, image)
        difference = largest_difference(engine(image), reference)
    except (InputError, RuntimeError) as error:
        return Trial(name, problem=str(error).splitlines()[0])
    if not is_close(difference):
        problem = f"it is {difference:.2g} off torch's probabilities, expected {TOLERANCE}."
        return Trial(name, difference=difference, problem=problem)
    times = [_time_batch(engine, image) for _ in range(repeats)]
    return Trial(name, engine, min(times, default=0.0), difference)


def _time_batch(engine: Engine, image: Tensor) -> float:
    """Seconds that a batch takes."""
    began = time.perf_counter()
    engine(image).sum().item()  # waits for a GPU
    return time.perf_counter() - began


def print_trials(trials: list[Trial], chosen: str) -> None:
    """Print what `try_engines` found as a table on the terminal."""
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


def memory_path() -> Path:
    """The file that remembers the fastest engines, in the user's folder for such files."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "ovseg" / MEMORY_FILE


def describe_situation(network: nn.Module, image: Tensor) -> dict[str, Any]:
    """All that the speed of the engines depends on, as JSON has it.

    That is the machine, the packages, the network but for the values of its weights, and the shape
    of a batch.
    """
    device = processor_name()
    if image.device.type == "cuda":
        device = torch.cuda.get_device_name(image.device)
    packages = ["torch", *[kind.package for kind in ENGINES.values() if kind.package]]
    return {
        "device": device,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "versions": module_versions(packages),
        "network": str(network),
        "image": list(image.shape),
    }


def _read_memory(path: Path) -> dict[str, str]:
    """Digest of a situation -> name of the fastest engine; empty where the file is broken."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(found, dict):
        return {}
    return {key: name for key, name in found.items() if name in ENGINES}


def _remember(path: Path, key: str, name: str) -> None:
    try:
        write_json(path, {**_read_memory(path), key: name})
    except OSError:
        return  # a folder that can't be written, such as in a container, costs only another trial
