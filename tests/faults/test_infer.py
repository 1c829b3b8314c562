"""`ovseg infer` of a thousand pictures: its memory stays the same, and kills lose no mask."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from PIL import Image

from ovseg.data.prepare.phantoms import make_phantom
from support import REPOSITORY

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

PICTURES = 1000
KILLS = 5
# MiB by which the memory may differ after the first fifth of the pictures. A thousand overlays of
# these pictures are 150 MB.
GROWTH = 30


@pytest.fixture(scope="module")
def place(make_run, tmp_path_factory) -> Path:
    """A folder with a run, and a thousand names of ten pictures."""
    folder = tmp_path_factory.mktemp("place")
    make_run(folder / "run")
    (folder / "images").mkdir()
    for number in range(PICTURES):
        path = folder / "images" / f"{number}.png"
        original = path.with_name(f"{number % 10}.png")
        if number < 10:
            Image.fromarray(make_phantom(number, 224)[0]).save(original)
        else:
            os.link(original, path)
    return folder


@pytest.fixture(scope="module")
def start(place) -> Callable[..., subprocess.Popen[str]]:
    """A function that starts `infer` of the pictures into a folder."""

    def run(output: Path, *options: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "ovseg", "infer", "--run", "run", "--images", "images"]
        return subprocess.Popen(
            [*command, "--device", "cpu", "--overlays", "--output", output, *options],
            cwd=place,
            env={**os.environ, "OMP_NUM_THREADS": "2", "PYTHONPATH": str(REPOSITORY)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return run


def count_masks(output: Path) -> int:
    """How many masks are in an unfinished folder."""
    partial = output.with_name(f".{output.name}.partial")
    if not partial.is_dir():
        return 0
    return sum(not name.startswith(".") for name in os.listdir(partial) if name.endswith(".png"))


@pytest.fixture(scope="module")
def undisturbed(start, digests, tmp_path_factory) -> tuple[dict[str, str], list[float]]:
    """The digests of what an undisturbed call writes, and its memory from time to time, MiB."""
    output = tmp_path_factory.mktemp("undisturbed") / "out"
    memory = []
    with start(output) as process:
        while process.poll() is None:
            if count_masks(output) > PICTURES / 5:
                memory.append(psutil.Process(process.pid).memory_info().rss / 2**20)
            time.sleep(0.05)
        assert process.returncode == 0, process.stderr.read()
    return digests(output), memory


def test_memory_does_not_grow_with_the_number_of_pictures(undisturbed):
    _, memory = undisturbed
    assert len(memory) > 10
    memory = [entry for entry in memory if entry > 100]  # the last may be of a process that ends
    assert max(memory) - memory[0] < GROWTH
    print(f"\n{PICTURES} pictures: {memory[0]:.0f} MiB after a fifth, at most {max(memory):.0f}.")


@pytest.mark.parametrize(
    ("devices", "whom"), [(1, "the command"), (2, "the command"), (2, "a process of it")]
)
def test_kills_lose_and_break_no_mask(start, undisturbed, digests, draw, tmp_path, devices, whom):
    output = tmp_path / "out"
    moments = sorted(draw.sample(range(PICTURES * 9 // 10), KILLS))
    for moment in moments:
        with start(output, "--devices", str(devices)) as process:
            while process.poll() is None and count_masks(output) <= moment:
                time.sleep(0.02)
            children = psutil.Process(process.pid).children()
            victim = process.pid
            if whom == "a process of it":
                victim = draw.choice([child.pid for child in children if is_worker(child)])
            os.kill(victim, signal.SIGKILL)
            errors = process.communicate(timeout=60)[1]
        assert not output.exists()
        if whom == "a process of it":
            assert process.returncode == 2
            assert "was killed, as a system does whose memory is full. The same" in errors
        else:
            assert process.returncode == -signal.SIGKILL
            assert not psutil.wait_procs(children, timeout=10)[1]
        assert "Traceback" not in errors
    with start(output, "--devices", str(devices)) as process:
        printed, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors
    assert "Continuing: " in printed
    assert digests(output) == undisturbed[0]
    assert len(list(output.glob("*.png"))) == PICTURES
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    print(f"\n{devices} devices, {whom} killed after {moments} masks: all there, none broken.")


def is_worker(process: psutil.Process) -> bool:
    """Whether a child predicts; another one only keeps account of shared resources."""
    return "spawn_main" in " ".join(process.cmdline())
