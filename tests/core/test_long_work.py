"""What long work does when its terminal or its caller goes away."""

import errno
import io
import os
import signal
import subprocess
import sys

import pytest

from ovseg.core.long_work import LIFELINE, LastingStream, hang_up_terminates, lasting_output

PRINT_ON = """
import sys
from ovseg.core.long_work import lasting_output
with lasting_output():
    for number in range(3):
        print("a line", flush=True)
        print("a line", file=sys.stderr, flush=True)
        if number == 0:
            sys.stdin.read(1)
open(sys.argv[1], "w").write("reached")
"""


def test_work_goes_on_without_a_reader(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", PRINT_ON, tmp_path / "end"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert process.stdout.readline() == b"a line\n"
    process.stdout.close()
    process.stdin.write(b"x")
    process.stdin.close()
    assert process.wait(timeout=60) == 0
    assert (tmp_path / "end").read_text() == "reached"


class FullDisk(io.StringIO):
    """A log file on a disk that has no room for one line."""

    full = True

    def write(self, text):
        if self.full:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(text)


def test_full_disk_loses_lines_only_while_it_is_full():
    log = FullDisk()
    stream = LastingStream(log)
    assert stream.write("lost") == 4
    log.full = False
    stream.write("kept")
    assert log.getvalue() == "kept"


def test_streams_are_restored():
    before = (sys.stdout, sys.stderr)
    with lasting_output():
        assert isinstance(sys.stdout, LastingStream)
        assert sys.stdout.isatty() == before[0].isatty()
    assert (sys.stdout, sys.stderr) == before


@pytest.mark.parametrize("sent", [signal.SIGHUP, signal.SIGUSR1])
def test_hang_up_does_what_sigterm_does(sent, monkeypatch):
    monkeypatch.delenv("SLURM_NTASKS", raising=False)
    received = []
    before = signal.signal(signal.SIGTERM, lambda number, _: received.append(number))
    inherited = signal.signal(sent, signal.SIG_DFL)  # the tests may run under nohup
    try:
        with hang_up_terminates():
            os.kill(os.getpid(), sent)
        assert signal.getsignal(sent) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGTERM, before)
        signal.signal(sent, inherited)
    assert received == [signal.SIGTERM]


def test_ignored_hang_up_stays_ignored():
    """As `nohup` leaves it."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with hang_up_terminates():
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_signal_of_a_slurm_job_is_left_to_lightning(monkeypatch):
    monkeypatch.setenv("SLURM_NTASKS", "2")
    with hang_up_terminates():
        assert signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL


WAIT = """
import time
from ovseg.core.long_work import end_with_caller
end_with_caller()
print("waits", flush=True)
time.sleep(100)
"""
CALL = """
import os, subprocess, sys
child = subprocess.Popen(
    [sys.executable, "-c", sys.argv[1]],
    stdin=subprocess.PIPE, env={**os.environ, sys.argv[2]: "1"},
)
child.wait()
"""


def test_process_ends_with_a_caller_that_is_killed():
    caller = subprocess.Popen(
        [sys.executable, "-c", CALL, WAIT, LIFELINE], stdout=subprocess.PIPE, text=True
    )
    assert caller.stdout.readline() == "waits\n"
    caller.kill()
    # Both have the pipe, so it ends with the later one.
    caller.communicate(timeout=30)
