"""What a command that computes for hours does when its terminal or its caller goes away."""

import errno
import functools
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO, cast

# Environment variable of a process that is to end when its standard input ends.
LIFELINE = "OVSEG_END_WITH_STDIN"
GRACE = 60.0  # seconds in which such a process may finish a batch and keep a checkpoint
# What a write fails with where nobody reads any more: a pipe, and a terminal that was closed.
NO_READER = (errno.EPIPE, errno.EIO)


class LastingStream:
    """A text stream whose lines are lost where they can't be written.

    Args:
        stream: where they are written.
    """

    def __init__(self, stream: TextIO):
        self.stream = stream

    def write(self, text: str) -> int:
        try:
            return self.stream.write(text)
        except OSError as error:
            self._give_up(error)
            return len(text)

    def flush(self) -> None:
        try:
            self.stream.flush()
        except OSError as error:
            self._give_up(error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def _give_up(self, error: OSError) -> None:
        """Write to nowhere from now on if the reader is gone; a full disk may have room later."""
        if error.errno in NO_READER:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.stream.fileno())
            os.close(nowhere)


@contextmanager
def lasting_output() -> Iterator[None]:
    """Let the block go on without its lines when nobody reads them, as with `| head`."""
    output = sys.stdout
    errors = sys.stderr
    sys.stdout = cast(TextIO, LastingStream(output))
    sys.stderr = cast(TextIO, LastingStream(errors))
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stdout = output
        sys.stderr = errors


@contextmanager
def hang_up_terminates() -> Iterator[None]:
    """Let SIGHUP and SIGUSR1 do in the block what SIGTERM does.

    A signal that is ignored, as SIGHUP under `nohup`, stays ignored. SIGUSR1 of a SLURM job is left
    to Lightning, which submits the job again.
    """
    names = ["SIGHUP"]
    if "SLURM_NTASKS" not in os.environ:
        names.append("SIGUSR1")
    taken = []
    if threading.current_thread() is threading.main_thread():  # no other may set handlers
        for name in names:
            number = getattr(signal, name, None)  # Windows has neither
            if number is not None and signal.getsignal(number) is signal.SIG_DFL:
                signal.signal(number, _terminate)
                taken.append(number)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)


def _terminate(*_: object) -> None:
    signal.raise_signal(signal.SIGTERM)


def long_work(command: Callable[..., int]) -> Callable[..., int]:
    """Decorate a command that goes on when the reader of its lines has gone away."""

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> int:
        with lasting_output(), hang_up_terminates():
            return command(*args, **kwargs)

    return run


def continues(command: Callable[..., int]) -> Callable[..., int]:
    """Decorate a command that, called again after Ctrl-C, continues; `ovseg` says so."""

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> int:
        try:
            return command(*args, **kwargs)
        except KeyboardInterrupt:
            text = "The same command continues where it stopped."
            raise KeyboardInterrupt(text) from None

    return run


def has_caller() -> bool:
    """Whether this process was started with `LIFELINE`, so that another one continues its work."""
    return LIFELINE in os.environ


def end_with_caller() -> None:
    """End this process when the one that started it with `LIFELINE` ends, even by SIGKILL."""
    if has_caller():
        threading.Thread(target=_wait_for_caller, daemon=True).start()


def _wait_for_caller() -> None:
    """Read the standard input, a pipe of which the caller alone has the other end, to its end."""
    while os.read(0, 1):
        continue
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE)
    os.kill(os.getpid(), signal.SIGKILL)
