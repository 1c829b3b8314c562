"""Trainings whose processes are killed, in processes of their own."""

import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import torch

from ovseg.core.checkpoints import read_checkpoint
from ovseg.core.runs import RunFolder
from support import tiny_settings

DROPOUT = {"num_layers": 3, "dropout_rate": 0.2}
SETTINGS = {
    **tiny_settings(max_epochs=1000, arch_args=DROPOUT, augmentation="standard", num_workers=2),
    "early_stopping": {"patience": 999},
}
SECONDS = 120  # until the first epoch of a training is complete, and for the end of processes


@pytest.fixture
def tiny(write_config, phantom_root):
    """A folder to work in, with tiny.yaml."""
    return write_config(SETTINGS, phantom_root)


def start(command: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "ovseg", command, "--config", "tiny.yaml", *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def is_alive(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def test_killed_loader_process_is_one_line_and_leaves_a_checkpoint(tiny):
    training = start("train")
    last = RunFolder.first(tiny / "runs" / "tiny").checkpoint("last")
    wait_until(last.exists)
    workers = psutil.Process(training.pid).children()
    assert len(workers) == 2
    workers[0].kill()
    _, errors = training.communicate(timeout=SECONDS)
    assert training.returncode == 2
    assert "Traceback" not in errors
    assert errors.splitlines()[-1].startswith("error: A loader process ended: ")
    assert read_checkpoint(last)["epoch"] >= 0
    assert not any(is_alive(worker) for worker in workers)


@pytest.mark.slow
def test_file_that_vanishes_is_named_by_a_loader_process(tiny, phantom_root):
    shutil.copytree(phantom_root, tiny / "data")
    training = start("train", "--data.root", "data", "--data.cache", "false")
    wait_until(RunFolder.first(tiny / "runs" / "tiny").checkpoint("last").exists)
    path = sorted(Path("data/train/images").iterdir())[0]
    path.unlink()
    _, errors = training.communicate(timeout=SECONDS)
    assert training.returncode == 2
    assert errors.splitlines()[-1].startswith(f"error: {path} cannot be read")


@pytest.mark.slow
def test_killed_training_leaves_no_loader_process(tiny):
    training = start("train")
    wait_until(RunFolder.first(tiny / "runs" / "tiny").checkpoint("last").exists)
    workers = psutil.Process(training.pid).children()
    training.kill()
    training.communicate(timeout=SECONDS)
    assert workers
    wait_until(lambda: not any(is_alive(worker) for worker in workers))


def test_killed_cross_validation_leaves_no_training(write_config, fold_root):
    folder = write_config(SETTINGS, fold_root)
    caller = start("cross_validate", "--folds", 3, "--output", "out")
    wait_until(RunFolder.first(folder / "out" / "fold_0").checkpoint("last").exists)
    processes = psutil.Process(caller.pid).children(recursive=True)
    caller.kill()
    caller.communicate(timeout=SECONDS)
    assert processes
    wait_until(lambda: not any(is_alive(process) for process in processes))


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("workers", [0, 1, 2, 4])
def test_chain_of_killed_trainings_is_the_uninterrupted_one(tiny, workers):
    """Each is killed at a random moment, and resumed until it is complete."""
    same = ("--trainer.max_epochs", 6, "--data.num_workers", workers)
    uninterrupted = start("train", *same, "--runs_dir", "whole")
    uninterrupted.communicate(timeout=SECONDS)
    assert uninterrupted.returncode == 0
    whole = RunFolder.first(tiny / "whole" / "tiny")
    moments = random.Random(workers)
    for _ in range(5):
        training = start("train", *same, "--resume")
        wait_until(lambda: any(tiny.glob("runs/tiny/*/run.json")))
        time.sleep(moments.uniform(0, 8))
        training.kill()
        training.communicate(timeout=SECONDS)
    training = start("train", *same, "--resume")
    training.communicate(timeout=SECONDS)
    assert training.returncode == 0
    runs = RunFolder.list_versions(tiny / "runs" / "tiny")
    for name in ("last", "best"):
        expected = torch.load(whole.checkpoint(name), weights_only=True)["state_dict"]
        of_runs = [run for run in runs if run.checkpoint("last").is_file()]
        complete = max(of_runs, key=lambda run: read_checkpoint(run.checkpoint("last"))["epoch"])
        found = torch.load(complete.checkpoint(name), weights_only=True)["state_dict"]
        for key, value in expected.items():
            assert torch.equal(found[key], value), (name, key)
