"""Speed and memory against named peers, in one run: each peer lives in a process of its own, and they take turns."""

import importlib.metadata
import os
import platform
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from ovseg.benchmark.peers import (
    ONLY_INFER,
    PEERS,
    PRECISIONS,
    Workload,
    build_step,
    count_flops,
    keras_network,
)
from ovseg.core.errors import InputError
from ovseg.core.processes import own_process, peak_memory, run_alone
from ovseg.core.registry import choose
from ovseg.training.task import allow_tf32

_step: Any = None  # of a measuring process
SIZES, BATCHES = (128, 256, 384, 512, 768, 1024), (1, 2, 4, 8)  # of `measure_scaling`
OWN_MEMORY = (
    "ovseg",
    "compile",
    "graphs",
)  # peers with the package's huge pages; the others have torch's default


def measure_peers(
    work: Workload, peers: list[str], repeats: int = 5, warmup: int = 2
) -> pd.DataFrame:
    """Seconds, memory and arithmetic of peers that take turns, one step each, until all have `repeats`.

    Args:
        work: what each does.
        peers: keys of `PEERS`; ratios are to the first.
        repeats: timed steps of each.
        warmup: steps before, untimed.

    Returns:
        A row a peer: median, least and most seconds, seconds of CPU, speed (the first is 1), images a second, GFLOP/s
        and share of the machine's measured peak (for the configuration's network), peak memory, and in inference the
        largest difference of a probability from the first peer of the same network.

    Raises:
        InputError: an unknown peer, or one that can't do the work.
    """
    _check(work, peers)
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        if "tensorflow" in peers:
            work = replace(work, weights=Path(scratch) / "initial.weights.h5")
            run_alone(_draw_weights, work)
        peak, flops = run_alone(_matrix_peak, work), count_flops(work)
        pools = {peer: stack.enter_context(_process(peer)) for peer in peers}
        for peer in tqdm(peers, "Warming up", disable=None):
            pools[peer].submit(_prepare, peer, work, warmup).result()
        results = {peer: [] for peer in peers}
        for _ in tqdm(range(repeats), "Measuring", disable=None):
            for peer in peers:
                results[peer].append(pools[peer].submit(_measure).result())
        memory = {peer: pools[peer].submit(_peak_memory, work.device).result() for peer in peers}
        values = {peer: pools[peer].submit(_last_value).result() for peer in peers}
    return _tabulate(work, results, memory, values, flops, peak)


def measure_scaling(work: Workload, peers: list[str], repeats: int = 3) -> pd.DataFrame:
    """How seconds and memory grow with image size, batch size, layers and threads, one at a time.

    Returns:
        A row a point and peer: variable, value, seconds (median), nanoseconds a pixel, peak memory.
    """
    small = replace(work, batch_size=1, image_size=256)
    depth = (work.model.get("arch_args") or {}).get("num_layers", 8)
    points = [("image size", s, replace(small, image_size=s)) for s in SIZES]
    points += [("batch size", n, replace(small, batch_size=n)) for n in BATCHES]
    if work.model["arch"] == "flexible_unet":
        points += [("layers", n, _with_layers(small, n)) for n in range(min(4, depth), depth + 1)]
    points += [("threads", n, replace(small, threads=n)) for n in range(1, work.threads + 1)]
    rows = []
    for variable, value, point in tqdm(points, "Scaling", disable=None):
        for peer in peers:
            with _process(peer) as pool:
                pool.submit(_prepare, peer, point, 1).result()
                seconds = float(
                    np.median([pool.submit(_measure).result()[0] for _ in range(repeats)])
                )
                memory = pool.submit(_peak_memory, point.device).result()
            pixels = point.batch_size * point.image_size**2
            row = {"variable": variable, "value": value, "peer": peer, "seconds": seconds}
            rows.append({**row, "ns a pixel": seconds / pixels * 1e9, "peak MiB": memory})
    return pd.DataFrame(rows)


def describe_machine(work: Workload) -> dict[str, Any]:
    """Where the numbers were measured, and with which versions."""
    names = (
        "torch",
        "tensorflow-cpu",
        "keras",
        "segmentation-models-pytorch",
        "monai",
        "onnxruntime",
        "openvino",
    )
    versions = {name: _version(name) for name in names}
    gpu = torch.cuda.get_device_name() if work.device.startswith("cuda") else None
    return {
        "system": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "cpus": os.cpu_count(),
        "gpu": gpu,
        "load at the end": os.getloadavg() if hasattr(os, "getloadavg") else None,
        "versions": {name: version for name, version in versions.items() if version},
        "work": {
            name: str(value) if isinstance(value, Path) else value
            for name, value in vars(work).items()
        },
    }


def _check(work: Workload, peers: list[str]) -> None:
    for peer in peers:
        choose("peer", peer, PEERS)
        if work.mode == "train" and peer in ONLY_INFER:
            raise InputError(f"--peers {peer} only infers. Leave it out of a training benchmark.")
        if peer == "graphs" and not work.device.startswith("cuda"):
            raise InputError(
                f"--peers graphs needs a CUDA device, not {work.device}. Leave it out."
            )
        if peer in ("tensorflow", *ONLY_INFER) and work.device != "cpu":
            raise InputError(
                f"--peers {peer} runs on the CPU, not on {work.device}. Leave it out or use --device cpu."
            )
    if "tensorflow" in peers:
        if work.model["arch"] != "flexible_unet":
            raise InputError(
                f"--peers tensorflow is the flexible_unet, not {work.model['arch']}. Leave it out."
            )
        stride = 2 ** (keras_network(work)["num_layers"] - 1)
        if work.image_size % stride:
            raise InputError(
                f"--image-size {work.image_size} must be a multiple of {stride} for the peer tensorflow."
            )


def _process(peer: str) -> AbstractContextManager[ProcessPoolExecutor]:
    """A process of the peer's own."""
    return own_process({"THP_MEM_ALLOC_ENABLE": "1" if peer in OWN_MEMORY else "0"})


def _prepare(peer: str, work: Workload, warmup: int) -> None:
    global _step
    work_step = build_step(peer, work)

    def _step_and_wait() -> tuple[float, float, Any]:
        began, cpu = time.perf_counter(), time.process_time()
        value = work_step()
        if work.device.startswith("cuda"):
            torch.cuda.synchronize()
        return time.perf_counter() - began, time.process_time() - cpu, value

    _step = _Recorder(_step_and_wait)
    for _ in range(warmup):
        _step()


class _Recorder:
    """Keeps the last value, so that big maps do not travel between processes at every step."""

    def __init__(self, step: Any):
        self.step, self.value = step, None

    def __call__(self) -> tuple[float, float]:
        seconds, cpu_seconds, self.value = self.step()
        return seconds, cpu_seconds


def _measure() -> tuple[float, float]:
    return _step()


def _last_value() -> Any:
    return _step.value


def _peak_memory(device: str) -> float:
    """MiB: of the GPU's tensors, or of this process."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated() / 2**20
    return peak_memory()


def _draw_weights(work: Workload) -> None:
    from ovseg.baseline.keras_unet import save_initial_weights

    save_initial_weights(keras_network(work), work.weights, 42, work.threads)


def _matrix_peak(work: Workload, side: int = 3072) -> float:
    """GFLOP/s of the best of five products of two large matrices in the work's precision."""
    torch.set_num_threads(work.threads)
    allow_tf32(work.precision == "tf32")
    a = torch.randn(side, side, device=work.device, dtype=PRECISIONS[work.precision])
    seconds = []
    for _ in range(6):
        began = time.perf_counter()
        (a @ a)[0, 0].item()
        seconds.append(time.perf_counter() - began)
    return 2 * side**3 / min(seconds[1:]) / 1e9


def _tabulate(
    work: Workload,
    results: dict,
    memory: dict[str, float],
    values: dict[str, Any],
    flops: int,
    peak: float,
) -> pd.DataFrame:
    rows, same = [], [peer for peer in results if peer not in ("smp", "monai")]
    for peer, measured in results.items():
        seconds, cpu_seconds = (np.array(column) for column in zip(*measured, strict=True))
        median = float(np.median(seconds))
        row = {"peer": peer, "median s": median, "least s": seconds.min(), "most s": seconds.max()}
        row |= {"CPU s": float(np.median(cpu_seconds)), "images/s": work.batch_size / median}
        row["speed"] = float(np.median([s for s, _ in results[next(iter(results))]])) / median
        if peer in same:
            row |= {"GFLOP/s": flops / median / 1e9, "share of peak": flops / median / 1e9 / peak}
            if work.mode == "infer":
                row["difference"] = float(np.abs(values[peer] - values[same[0]]).max())
        rows.append({**row, "peak MiB": memory[peer]})
    table = pd.DataFrame(rows).set_index("peer")
    table.attrs.update({"GFLOP a step": flops / 1e9, "peak GFLOP/s of a matrix product": peak})
    return table


def _with_layers(work: Workload, count: int) -> Workload:
    return replace(
        work,
        model={
            **work.model,
            "arch_args": {**(work.model.get("arch_args") or {}), "num_layers": count},
        },
    )


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
