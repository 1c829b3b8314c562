"""Functions in a process of their own, and what processes use of the machine."""

import multiprocessing
import os
import platform
import resource
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import ParamSpec, TypeVar

import psutil

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


@contextmanager
def own_process(environment: Mapping[str, str] | None = None) -> Iterator[ProcessPoolExecutor]:
    """A fresh Python process that runs what is submitted to it, and ends with the block.

    Args:
        environment: variables that it has besides those of this process.
    """
    before = dict(os.environ)
    os.environ.update(environment or {})
    try:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            pool.submit(os.getpid).result()  # starts it, while the variables are set
            _restore_environment(before)
            yield pool
    finally:
        _restore_environment(before)


def run_alone(
    function: Callable[Arguments, Result], *args: Arguments.args, **kwargs: Arguments.kwargs
) -> Result:
    """Call a function of a module in a process of its own."""
    with own_process() as pool:
        return pool.submit(function, *args, **kwargs).result()


def peak_memory() -> float:
    """The most memory that this process has had, MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)  # bytes there, KiB on Linux


def busy_seconds() -> float:
    """CPU time that all processes of this machine have used since it started, of all its cores.

    Time that a host gave to other virtual machines counts too.
    """
    times = psutil.cpu_times()
    busy = times.user + times.system
    for name in ("nice", "irq", "softirq", "steal"):  # not every system has them
        busy += getattr(times, name, 0.0)
    return busy


def processor_name() -> str:
    """The CPU's own name, or where the system does not tell it, the kind of its instructions."""
    path = Path("/proc/cpuinfo")
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def _restore_environment(before: Mapping[str, str]) -> None:
    for name in os.environ.keys() - before.keys():
        del os.environ[name]
    os.environ.update(before)
