"""Processes that send what they compute, and how they end."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import numpy as np
import psutil
import pytest

import senders
from ovseg.core.errors import InputError, WriteError
from ovseg.core.processes import peak_memory, processes_that_send, run_alone

# Starts two processes, prints their ids and waits for them.
WAITING = """
import signal

import senders
from ovseg.core.processes import processes_that_send

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where tests run with nohup
    with processes_that_send(senders.wait, {"a": (), "b": ()}) as messages:
        for message in messages:
            print(message, flush=True)
"""


def test_everything_that_is_sent_arrives_in_the_order_of_each_process():
    calls = {"first": ("a", 3), "second": ("b", 2)}
    with processes_that_send(senders.count, calls) as messages:
        received = list(messages)
    assert [number for name, number in received if name == "a"] == [0, 1, 2]
    assert [number for name, number in received if name == "b"] == [0, 1]
    assert len(received) == 5


@pytest.mark.parametrize(("on_disk", "kind"), [(False, InputError), (True, WriteError)])
def test_mistake_in_a_process_is_raised_here(on_disk, kind):
    with (
        pytest.raises(kind) as raised,
        processes_that_send(senders.refuse, {"a": (on_disk,)}) as messages,
    ):
        list(messages)
    assert type(raised.value) is kind
    assert str(raised.value) in ("The disk is full.", "No such run.")


def test_killed_process_is_named_and_the_others_end():
    with (
        pytest.raises(ChildProcessError, match="^[ab] was killed, as a system does whose memory"),
        processes_that_send(senders.wait, {"a": (), "b": ()}) as messages,
    ):
        ids = [next(messages), next(messages)]
        os.kill(ids[0], signal.SIGKILL)
        list(messages)
    assert not any(map(psutil.pid_exists, ids))


def test_process_that_ends_in_another_way_is_named():
    with (
        pytest.raises(ChildProcessError, match="^a ended with exit code 3"),
        processes_that_send(senders.leave, {"a": (3,)}) as messages,
    ):
        list(messages)


@pytest.mark.parametrize(
    ("sent", "code"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGTERM, -signal.SIGTERM)]
)
def test_processes_end_with_the_one_that_started_them(tmp_path, sent, code):
    with start_waiting(tmp_path) as process:
        ids = read_ids(process)
        process.send_signal(sent)
        assert process.wait(60) == code
        wait_for_end(ids)


def test_ctrl_c_of_a_terminal_ends_all_processes_without_a_word_of_theirs(tmp_path):
    with start_waiting(tmp_path) as process:
        ids = read_ids(process)
        os.killpg(process.pid, signal.SIGINT)  # a terminal sends it to the whole group
        errors = process.communicate(timeout=60)[1]
        assert errors.count("KeyboardInterrupt") == 1
        wait_for_end(ids)


@contextmanager
def start_waiting(tmp_path) -> Iterator[subprocess.Popen[str]]:
    """Start `WAITING` in a group of processes of its own, which is killed in the end."""
    script = tmp_path / "waiting.py"
    script.write_text(WAITING)
    paths = os.pathsep.join(path for path in sys.path if path)
    with subprocess.Popen(
        [sys.executable, script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": paths},
    ) as process:
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):  # they have all ended, as they should
                os.killpg(process.pid, signal.SIGKILL)


def read_ids(process: subprocess.Popen[str]) -> list[int]:
    """The ids of the two processes that `WAITING` starts."""
    return [int(process.stdout.readline()) for _ in range(2)]


def wait_for_end(ids: list[int]) -> None:
    """Fail if one of some processes does not end; nobody waits for a child of a dead process."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        living = [number for number in ids if is_running(number)]
        if not living:
            return
        time.sleep(0.05)
    pytest.fail(f"{living} still run.")


def is_running(number: int) -> bool:
    try:
        return psutil.Process(number).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_peak_memory_is_that_of_the_process_and_not_of_its_parent():
    block = np.ones(300 * 2**17)  # 300 MiB
    peak = peak_memory()
    assert peak > 300
    assert block.sum() == len(block)
    assert run_alone(peak_memory) < peak - 250
