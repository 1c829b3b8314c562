"""`ovseg train` in a child process, so that a training that dies does not end its caller too.

What its callers share is here as well: they write a configuration for it.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NoReturn, cast

import yaml
from pytorch_lightning.utilities.exceptions import SIGTERMException

from ovseg.core.files import atomic_path
from ovseg.core.long_work import LIFELINE


def write_configuration(path: Path, config: dict[str, Any]) -> None:
    """Write a configuration for `train --config`; the folder of its runs gets the file's name."""
    with atomic_path(path) as temporary:
        temporary.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")


@contextmanager
def training_process(
    config_path: Path, ckpt_path: Path | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Start `ovseg train`, which writes to this process' standard output and error.

    A training that still runs at the end of the block is ended. A SIGTERM inside the block raises
    SIGTERMException there, so the training ends with its caller. It also ends when this process is
    killed, because its standard input then ends.

    Args:
        config_path: its configuration.
        ckpt_path: resume from this checkpoint.
    """
    command = [sys.executable, "-m", "ovseg", "train", "--config", str(config_path)]
    if ckpt_path is not None:
        command += ["--ckpt_path", str(ckpt_path)]

    sys.stdout.flush()  # what is printed so far comes before the child's output
    handler_before = signal.signal(signal.SIGTERM, _raise_sigterm)
    environment = {**os.environ, LIFELINE: "1"}
    process = subprocess.Popen(command, stdin=subprocess.PIPE, env=environment)
    try:
        yield process
    finally:
        signal.signal(signal.SIGTERM, handler_before)
        if process.poll() is None:
            process.terminate()
            process.wait()
        cast(IO[bytes], process.stdin).close()


def _raise_sigterm(*_: object) -> NoReturn:
    raise SIGTERMException


def tell_of_validation(config: dict[str, Any]) -> None:
    """Print that data.train_on_valid is not used where trainings are compared by validation."""
    if config["data"]["train_on_valid"]:
        print("data.train_on_valid is not used here: each training keeps its validation images.")
