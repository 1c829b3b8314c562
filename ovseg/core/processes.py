"""Functions in a process of their own, and what processes use of the machine."""

import multiprocessing
import os
import platform
import resource
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import psutil

from ovseg.core.errors import InputError

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


@contextmanager
def processes_that_send(
    function: Callable[..., None], calls: Mapping[str, Sequence[object]]
) -> Iterator[Iterator[Any]]:
    """Run a function several times at once, each in a fresh Python process.

    The processes end with the block, and when this process ends, even by SIGKILL. Ctrl-C ends only
    this process.

    Args:
        function: of a module. It is called with a function that sends an object to this process,
            from any thread, and then with the arguments of the call.
        calls: the arguments of each call, by the name of its process in messages.

    Yields:
        What is sent, in the order in which it arrives, until all calls have returned. It raises the
        InputError that a call raised; ChildProcessError where a process ended in another way.
    """
    context = multiprocessing.get_context("spawn")
    running: dict[Connection, tuple[str, BaseProcess]] = {}
    try:
        with _ignored_interrupts():
            for name, arguments in calls.items():
                ours, theirs = context.Pipe()
                process: BaseProcess = context.Process(
                    target=_run_and_send, args=(theirs, function, arguments)
                )
                process.start()
                theirs.close()
                running[ours] = (name, process)
        yield _receive(dict(running))
    finally:
        for connection, (_, process) in running.items():
            process.terminate()
            process.join()
            connection.close()


def _receive(running: dict[Connection, tuple[str, BaseProcess]]) -> Iterator[Any]:
    """What the processes send, until all have ended."""
    while running:
        for connection in wait(list(running)):
            assert isinstance(connection, Connection)
            try:
                message = connection.recv()
            except (EOFError, OSError):  # also in the middle of a message
                name, process = running.pop(connection)
                process.join()
                if process.exitcode:
                    raise ChildProcessError(_describe_end(name, process.exitcode)) from None
                continue
            if isinstance(message, InputError):
                raise message
            yield message


def _describe_end(name: str, exit_code: int) -> str:
    if exit_code == -signal.SIGKILL:
        return f"{name} was killed, as a system does whose memory is full"
    if exit_code < 0:
        return f"{name} was ended by signal {-exit_code}"
    return f"{name} ended with exit code {exit_code}"


def _run_and_send(
    connection: Connection, function: Callable[..., None], arguments: Sequence[object]
) -> None:
    """What a process of `processes_that_send` does."""
    threading.Thread(target=_end_with_parent, args=(connection,), daemon=True).start()
    lock = threading.Lock()

    def send(message: object) -> None:
        with lock:
            connection.send(message)

    try:
        function(send, *arguments)
    except InputError as error:
        send(error)


def _end_with_parent(connection: Connection) -> None:
    """Kill this process when its parent's end of the connection is closed."""
    try:
        connection.recv()  # nothing is ever sent this way
    except (EOFError, OSError):
        os.kill(os.getpid(), signal.SIGKILL)


@contextmanager
def _ignored_interrupts() -> Iterator[None]:
    """Let processes that the block starts ignore Ctrl-C, which a terminal sends to all of them."""
    in_main_thread = threading.current_thread() is threading.main_thread()
    if not in_main_thread:  # no other may set handlers
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def peak_memory() -> float:
    """The most memory that this process has had, MiB."""
    status = Path("/proc/self/status")
    # getrusage of Linux begins with the peak of the process that started this one.
    if status.is_file():
        [line] = [line for line in status.read_text().splitlines() if line.startswith("VmHWM")]
        return int(line.split()[1]) / 2**10
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
