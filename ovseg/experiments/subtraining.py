"""`train` as a process of its own, so that its end, of whatever kind, leaves the command that started it."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import yaml
from pytorch_lightning.utilities.exceptions import SIGTERMException

from ovseg.core.errors import first_five
from ovseg.core.files import atomic_path


def write_configuration(path: Path, config: dict[str, Any]) -> None:
    """Write a configuration for `train --config`; the run folder takes the name of the file."""
    with atomic_path(path) as temporary:
        temporary.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")


def changed_settings(earlier: dict[str, Any], now: dict[str, Any]) -> str:
    """The settings that differ, by dotted keys with both values; empty where none does."""
    earlier, now = flatten(earlier), flatten(now)
    changed = [
        name for name in sorted(earlier.keys() | now.keys()) if earlier.get(name) != now.get(name)
    ]
    return first_five(f"{name} {earlier.get(name)}, now {now.get(name)}" for name in changed)


def flatten(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one, with dotted keys."""
    flat = {}
    for name, value in settings.items():
        flat |= (
            flatten(value, f"{prefix}{name}.")
            if isinstance(value, dict) and value
            else {f"{prefix}{name}": value}
        )
    return flat


@contextmanager
def training_process(
    config_path: Path, ckpt_path: Path | None = None
) -> Iterator[subprocess.Popen]:
    """A running `train`, with this process' standard output and error; it ends with the block.

    Args:
        config_path: its configuration.
        ckpt_path: resume from this checkpoint.
    """
    resume = [] if ckpt_path is None else ["--ckpt_path", str(ckpt_path)]
    sys.stdout.flush()
    before = signal.signal(signal.SIGTERM, _stop)
    process = subprocess.Popen(
        [sys.executable, "-m", "ovseg", "train", "--config", str(config_path), *resume]
    )
    try:
        yield process
    finally:
        signal.signal(signal.SIGTERM, before)
        if process.poll() is None:
            process.terminate()
            process.wait()


def _stop(*_: Any) -> NoReturn:
    raise SIGTERMException
