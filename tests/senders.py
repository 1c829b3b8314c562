"""Functions that tests run in processes of their own; they import little, to start at once."""

import os
import time
from collections.abc import Callable

from ovseg.core.errors import InputError, WriteError


def count(send: Callable[[object], None], name: str, numbers: int) -> None:
    """Send a name with each number below another."""
    for number in range(numbers):
        send((name, number))


def refuse(send: Callable[[object], None], on_disk: bool) -> None:
    """Raise what a user is told."""
    if on_disk:
        raise WriteError("The disk is full.")
    raise InputError("No such run.")


def wait(send: Callable[[object], None]) -> None:
    """Send the id of the process and wait to be killed."""
    send(os.getpid())
    time.sleep(600)


def leave(send: Callable[[object], None], code: int) -> None:
    """End the process at once."""
    os._exit(code)
