"""Measure speed and memory of peers, each in its own process; they take turns."""

import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Executor
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from ovseg.benchmark.peers import (
    PEERS,
    PRECISIONS,
    Step,
    Workload,
    build_step,
    check_peer,
    count_flops,
)
from ovseg.core.console import progress_bar
from ovseg.core.errors import InputError
from ovseg.core.memory import keep_freed_memory
from ovseg.core.processes import busy_seconds, own_process, peak_memory, processor_name
from ovseg.core.versions import module_versions
from ovseg.training.task import allow_tf32

OTHERS = "share of the CPUs that other processes used"
SIZES = (128, 256, 384, 512, 768, 1024)  # image sizes of `scaling_points`
BATCH_SIZES = (1, 2, 4, 8)

# Starts a process with some environment variables; `own_process`, or another executor in tests.
StartProcess = Callable[[Mapping[str, str]], AbstractContextManager[Executor]]


class StepTimer:
    """Times a step.

    It keeps the last value, so that big maps are not sent between processes at every step.
    """

    def __init__(self, step: Step, device: str) -> None:
        self.step = step
        self.on_cuda = device.startswith("cuda")
        self.value: Any = None

    def __call__(self) -> "StepTime":
        """Do one step."""
        began = time.perf_counter()
        cpu_began = time.process_time()
        busy_began = busy_seconds()
        self.value = self.step()
        if self.on_cuda:
            torch.cuda.synchronize()
        seconds = time.perf_counter() - began
        cpu_seconds = time.process_time() - cpu_began
        others = busy_seconds() - busy_began - cpu_seconds
        return StepTime(seconds, cpu_seconds, max(0.0, others))


@dataclass(frozen=True)
class StepTime:
    """What one step took.

    Attributes:
        seconds: of the clock.
        cpu_seconds: CPU time of all threads of its process.
        other_cpu_seconds: CPU time that other processes used meanwhile.
    """

    seconds: float
    cpu_seconds: float
    other_cpu_seconds: float


@dataclass(frozen=True)
class Measured:
    """What was measured of one peer.

    Attributes:
        steps: each timed step.
        peak_mib: most memory, MiB.
        value: of the last step, see `ovseg.benchmark.peers.Step`.
    """

    steps: list[StepTime]
    peak_mib: float
    value: Any

    @property
    def seconds(self) -> list[float]:
        """Of the clock, of each step."""
        return [step.seconds for step in self.steps]

    @property
    def median(self) -> float:
        """Median seconds of a step."""
        return float(np.median(self.seconds))


class PeerProcess:
    """A peer in its own process.

    Args:
        name: a key of `PEERS`.
        work: what it does.
        process: where it runs.
    """

    def __init__(self, name: str, work: Workload, process: Executor) -> None:
        self.name = name
        self.work = work
        self.process = process
        self.steps: list[StepTime] = []

    def prepare(self, warmup: int) -> None:
        """Build the step and do it `warmup` times, untimed."""
        self.process.submit(_prepare, self.name, self.work, warmup).result()

    def do_step(self) -> None:
        """Do one timed step."""
        self.steps.append(self.process.submit(_do_step, self.name).result())

    def finish(self) -> Measured:
        """All that was measured."""
        peak_mib = self.process.submit(_peak_memory, self.work.device).result()
        value = self.process.submit(_last_value, self.name).result()
        return Measured(self.steps, peak_mib, value)


@dataclass(frozen=True)
class ScalingPoint:
    """One workload of a series in which only one variable changes.

    Attributes:
        variable: `image size`, `batch size`, `layers` or `threads`.
        value: of the variable.
        work: the workload.
    """

    variable: str
    value: int
    work: Workload


def measure_peers(
    work: Workload,
    peers: list[str],
    repeats: int = 5,
    warmup: int = 2,
    start_process: StartProcess = own_process,
) -> pd.DataFrame:
    """Measure peers that take turns, one step each, until all have `repeats`.

    Args:
        work: what each does.
        peers: keys of `PEERS`; ratios are to the first.
        repeats: timed steps of each.
        warmup: steps before, untimed.
        start_process: where each runs.

    Returns:
        A row a peer: median, least and most seconds, seconds of CPU time, speed (the first is 1),
        images a second, peak memory; for the configuration's network GFLOP/s and its share of the
        machine's peak (the median of measurements before each round), and in inference the largest
        difference of a probability from the first peer of that network.

    Raises:
        InputError: an unknown peer, or one that cannot do the work.
    """
    for peer in peers:
        check_peer(peer, work)
    flops = count_flops(work)
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        work = _share_weights(work, peers, Path(scratch), start_process)
        limit_process = stack.enter_context(start_process({}))
        running = []
        for peer in peers:
            process = stack.enter_context(start_process(_environment(peer)))
            running.append(PeerProcess(peer, work, process))
        for peer_process in progress_bar(running, "Warming up"):
            peer_process.prepare(warmup)
        peaks = []
        for _ in progress_bar(range(repeats), "Measuring"):
            # The limit takes its turn too: a virtual machine is not equally fast all the time.
            peaks.append(limit_process.submit(measure_peak, work).result())
            for peer_process in running:
                peer_process.do_step()
        results = {peer_process.name: peer_process.finish() for peer_process in running}
    return _tabulate(work, results, flops, float(np.median(peaks)))


def scaling_points(
    work: Workload,
    sizes: tuple[int, ...] = SIZES,
    batch_sizes: tuple[int, ...] = BATCH_SIZES,
) -> list[ScalingPoint]:
    """Workloads in which image size, batch size, layers and threads change, one at a time.

    What does not change is one image of 256 x 256 and the work's own network and threads.
    """
    small = replace(work, batch_size=1, image_size=256)
    points = []
    for size in sizes:
        points.append(ScalingPoint("image size", size, replace(small, image_size=size)))
    for batch_size in batch_sizes:
        points.append(ScalingPoint("batch size", batch_size, replace(small, batch_size=batch_size)))
    if work.model["arch"] == "flexible_unet":
        depth = work.arch_args.get("num_layers", 8)
        for layers in range(min(4, depth), depth + 1):
            model = {**work.model, "arch_args": {**work.arch_args, "num_layers": layers}}
            points.append(ScalingPoint("layers", layers, replace(small, model=model)))
    for threads in range(1, work.threads + 1):
        points.append(ScalingPoint("threads", threads, replace(small, threads=threads)))
    return points


def check_scaling(points: list[ScalingPoint], peers: list[str]) -> None:
    """Refuse peers that cannot do all of the points.

    Raises:
        InputError: see `ovseg.benchmark.peers.check_peer`; the message names the point.
    """
    for point in points:
        for peer in peers:
            try:
                check_peer(peer, point.work)
            except InputError as error:
                raise InputError(
                    f"--scaling cannot measure {peer} at {point.variable} {point.value}: {error}"
                ) from None


def measure_scaling(
    points: list[ScalingPoint],
    peers: list[str],
    repeats: int = 3,
    start_process: StartProcess = own_process,
) -> pd.DataFrame:
    """Measure seconds and memory of peers at each point.

    Returns:
        A row a point and peer: variable, value, seconds (median), nanoseconds a pixel, peak memory.

    Raises:
        InputError: see `check_scaling`.
    """
    check_scaling(points, peers)
    rows = []
    for point in progress_bar(points, "Scaling"):
        pixels = point.work.batch_size * point.work.image_size**2
        for peer in peers:
            with start_process(_environment(peer)) as process:
                peer_process = PeerProcess(peer, point.work, process)
                peer_process.prepare(warmup=1)
                for _ in range(repeats):
                    peer_process.do_step()
                measured = peer_process.finish()
            seconds = measured.median
            rows.append(
                {
                    "variable": point.variable,
                    "value": point.value,
                    "peer": peer,
                    "seconds": seconds,
                    "ns a pixel": seconds / pixels * 1e9,
                    "peak MiB": measured.peak_mib,
                }
            )
    return pd.DataFrame(rows)


def measure_peak(work: Workload, side: int = 3072, channels: int = 256) -> float:
    """GFLOP/s that this machine reaches in the work's precision: the limit of any network.

    It is the best of five products of two large matrices and of five dense convolutions: on some
    CPUs the library of the one does not use all instructions that the other's does.

    Args:
        work: threads, device and precision.
        side: of the matrices.
        channels: of the convolution, which is 3 x 3 on 64 x 64 pixels.
    """
    torch.set_num_threads(work.threads)
    allow_tf32(work.precision == "tf32")
    dtype = PRECISIONS[work.precision]
    matrix = torch.randn(side, side, device=work.device, dtype=dtype)
    features = torch.randn(2, channels, 64, 64, device=work.device, dtype=dtype)
    features = features.contiguous(memory_format=torch.channels_last)
    weight = torch.randn(channels, channels, 3, 3, device=work.device, dtype=dtype)
    weight = weight.contiguous(memory_format=torch.channels_last)

    def multiply() -> torch.Tensor:
        return matrix @ matrix

    def convolve() -> torch.Tensor:
        return torch.nn.functional.conv2d(features, weight, padding=1)

    multiplication = 2 * side**3 / _least_seconds(multiply)
    convolution = 2 * 9 * channels * features.numel() / _least_seconds(convolve)
    return max(multiplication, convolution) / 1e9


@torch.inference_mode()
def _least_seconds(function: Callable[[], torch.Tensor]) -> float:
    """The least of five times, after an untimed call."""
    seconds = []
    for _ in range(6):
        began = time.perf_counter()
        function().flatten()[0].item()  # waits for a GPU
        seconds.append(time.perf_counter() - began)
    return min(seconds[1:])


def describe_machine(work: Workload) -> dict[str, Any]:
    """Where the numbers were measured, and with which versions."""
    gpu = None
    if work.device.startswith("cuda"):
        gpu = torch.cuda.get_device_name()
    load = None
    if hasattr(os, "getloadavg"):  # not on Windows
        load = os.getloadavg()
    modules = ["torch"]
    for peer in PEERS.values():
        modules += peer.packages
    settings = asdict(work)
    if work.weights is not None:
        settings["weights"] = str(work.weights)
    return {
        "system": platform.platform(),
        "processor": processor_name(),
        "CPU capability": torch.backends.cpu.get_cpu_capability(),
        "cpus": os.cpu_count(),
        "threads": work.threads,
        "gpu": gpu,
        "load at the end": load,
        "versions": module_versions(modules),
        "work": settings,
    }


def _environment(peer: str) -> dict[str, str]:
    """Variables of a peer's process: torch's allocator reads this one."""
    return {"THP_MEM_ALLOC_ENABLE": "1" if PEERS[peer].own_memory else "0"}


def _share_weights(
    work: Workload, peers: list[str], folder: Path, start_process: StartProcess
) -> Workload:
    """Let a peer that can write its initial weights do so, for all peers of the same network."""
    for peer in peers:
        save_weights = PEERS[peer].save_weights
        if save_weights is None:
            continue
        path = folder / "initial.weights.h5"
        with start_process({}) as process:
            process.submit(save_weights, work, path).result()
        return replace(work, weights=path)
    return work


def _tabulate(
    work: Workload, results: dict[str, Measured], flops: int, peak_gflops: float
) -> pd.DataFrame:
    first, *_ = results.values()
    same_network = [name for name in results if PEERS[name].same_network]
    rows = []
    for name, measured in results.items():
        median = measured.median
        row = {
            "peer": name,
            "median s": median,
            "least s": min(measured.seconds),
            "most s": max(measured.seconds),
            "CPU s": float(np.median([step.cpu_seconds for step in measured.steps])),
            "images/s": work.batch_size / median,
            "speed": first.median / median,
        }
        if name in same_network:
            gflops = flops / median / 1e9
            row["GFLOP/s"] = gflops
            row["share of peak"] = gflops / peak_gflops
            if work.mode == "infer":
                reference = results[same_network[0]].value
                row["difference"] = float(np.abs(measured.value - reference).max())
        row["peak MiB"] = measured.peak_mib
        rows.append(row)
    table = pd.DataFrame(rows).set_index("peer")
    table.attrs["GFLOP a step"] = flops / 1e9
    table.attrs["peak GFLOP/s of a matrix product or dense convolution"] = peak_gflops
    table.attrs[OTHERS] = _share_of_others(results.values())
    return table


def _share_of_others(results: Iterable[Measured]) -> float:
    """The share of all CPUs that other processes used during the timed steps, 0..1."""
    steps = []
    for measured in results:
        steps += measured.steps
    available = sum(step.seconds for step in steps) * (os.cpu_count() or 1)
    return sum(step.other_cpu_seconds for step in steps) / available


# The functions below run in a peer's process.
_timers: dict[str, StepTimer] = {}


def _prepare(peer: str, work: Workload, warmup: int) -> None:
    if PEERS[peer].own_memory:
        keep_freed_memory()
    timer = StepTimer(build_step(peer, work), work.device)
    for _ in range(warmup):
        timer()
    _timers[peer] = timer


def _do_step(peer: str) -> StepTime:
    return _timers[peer]()


def _last_value(peer: str) -> Any:
    return _timers[peer].value


def _peak_memory(device: str) -> float:
    """MiB: of the GPU's tensors, or of this process."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated() / 2**20
    return peak_memory()
