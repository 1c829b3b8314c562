"""Commands that are killed at random moments or run out of disk.

`OVSEG_FAULTS=20 python -m pytest -m slow tests/faults -s` makes 20 trials of each kind (by default
3) and prints the counts. The trials are the same in every run with the same OVSEG_FAULTS_SEED.
"""

import hashlib
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from support import REPOSITORY

SERVER = Path(__file__).with_name("server.py")


@dataclass
class Result:
    """How a command ended.

    Attributes:
        code: its exit code, -9 where it was killed.
        seconds: how long it ran.
        printed: all that it printed.
    """

    code: int
    seconds: float
    printed: str

    @property
    def errors(self) -> list[str]:
        """The lines of `error: ...`."""
        return [line for line in self.printed.splitlines() if line.startswith("error: ")]


@pytest.fixture(scope="session")
def trials() -> int:
    """How many trials of each kind."""
    return int(os.environ.get("OVSEG_FAULTS", "3"))


@pytest.fixture
def draw(request) -> random.Random:
    """Random numbers of one test."""
    return random.Random(f"{request.node.name} {os.environ.get('OVSEG_FAULTS_SEED', '0')}")


@pytest.fixture(scope="session")
def call(tmp_path_factory) -> Iterator[Callable[..., Result]]:
    """A function that runs `ovseg NAME ...` in a folder, see `server.py`."""
    logs = tmp_path_factory.mktemp("logs")
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(REPOSITORY),  # of this checkout, whatever is installed
        "PYTHONWARNINGS": "ignore",
    }
    server = subprocess.Popen(
        [sys.executable, str(SERVER)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )

    def run(
        folder: Path,
        *arguments: object,
        kill_after: float | None = None,
        file_limit: int | None = None,
        temporary: Path | None = None,
    ) -> Result:
        # One each: workers of a killed training may print later.
        log = logs / f"{len(list(logs.iterdir()))}.txt"
        task = {
            "log": str(log),
            "folder": str(folder),
            "arguments": [str(argument) for argument in arguments],
            "kill_after": kill_after,
            "file_limit": file_limit,
            "temporary": None if temporary is None else str(temporary),
        }
        server.stdin.write(json.dumps(task) + "\n")
        server.stdin.flush()
        answer = json.loads(server.stdout.readline())
        log.touch()
        printed = log.read_text(errors="replace")
        return Result(answer["code"], answer["seconds"], printed)

    yield run
    server.stdin.close()
    server.wait()
    server.stdout.close()


@pytest.fixture(scope="session")
def digests() -> Callable[[Path], dict[str, str]]:
    """A function that gives the SHA-256 of every file in a folder, by its path there."""

    def read(folder: Path) -> dict[str, str]:
        found = {}
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                name = str(path.relative_to(folder))
                found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        return found

    return read
