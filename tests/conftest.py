"""Tiny phantoms for every test, no network, and the shared real data where a checkout has it."""

import logging
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path

# Processes of pytest-xdist share the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1" if "PYTEST_XDIST_WORKER" in os.environ else "2")
# Tests are many short computations in one process: they give memory back.
os.environ["OVSEG_KEEP_MEMORY"] = "0"
# The hub reads it when it is imported; otherwise it retries each refusal for 25 seconds.
os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import pytest
import torch
from PIL import Image
from pytorch_lightning import Trainer

from ovseg.cli.main import main
from ovseg.data.datamodule import OvarianTumorDataModule
from ovseg.data.prepare.phantoms import write_phantoms
from ovseg.training.task import SegmentationTask
from support import SHARED


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Only loopback sockets: a test that reaches out fails."""
    connect = socket.socket.connect

    def guarded(self, address):
        if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in (
            "127.0.0.1",
            "::1",
            "localhost",
        ):
            raise RuntimeError(f"A test tried to reach {address}.")
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)


@pytest.fixture(autouse=True)
def seeded():
    """The same random weights in every run."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def messages_of_lightning():
    """Some commands quiet Lightning's logger for their process, which the tests share."""
    logging.getLogger("pytorch_lightning").setLevel(logging.INFO)


@pytest.fixture(scope="session")
def run_command() -> Callable[..., int]:
    """A function that runs `ovseg NAME ...` in this process and returns its exit code."""

    def run(*arguments: object) -> int:
        before = sys.argv[:]  # Lightning's CLI sets it
        try:
            return main([str(argument) for argument in arguments])
        finally:
            sys.argv = before

    return run


@pytest.fixture(scope="session")
def phantom_root(tmp_path_factory) -> Path:
    """A dataset of 20 phantoms of 64 x 64: 14 train, 3 valid, 3 test. Not to be changed."""
    root = tmp_path_factory.mktemp("data") / "phantoms"
    write_phantoms(root, 20, size=64, seed=3)
    return root


@pytest.fixture(scope="session")
def ceus_root(tmp_path_factory) -> Path:
    """A dataset of 12 phantoms of 32 x 32 with contrast agent: 8 train. Not to be changed."""
    root = tmp_path_factory.mktemp("data") / "ceus"
    write_phantoms(root, 12, size=32, seed=4, look="ceus")
    return root


@pytest.fixture(scope="session")
def make_run(phantom_root) -> Callable[..., Path]:
    """A function that trains a tiny network for 20 steps and keeps it as a run folder.

    The last bias of a network of one class is then set so that a tenth of what it sees is lesion,
    with some components and holes.
    """

    def make(folder: Path, root: Path = phantom_root, seed: int = 0, **data) -> Path:
        torch.manual_seed(seed)
        arch_args = {"base_filters": 4, "base_kernel": 3, "num_layers": 3, "dilation": 1}
        loss = "bce_dice_loss"
        if data.get("classes", 1) > 1:
            arch_args["classes"] = data["classes"]
            loss = "ce_dice_loss"
        task = SegmentationTask(arch_args=arch_args, loss=loss, optimizer_args={"lr": 0.003})
        settings = {"image_size": 32, "batch_size": 4, "num_workers": 0, "cache": False, **data}
        datamodule = OvarianTumorDataModule(str(root), **settings)
        trainer = Trainer(
            max_steps=20,
            accelerator="cpu",
            limit_val_batches=0,
            default_root_dir=folder,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(task, datamodule)
        if task.classes == 1:
            images = next(iter(datamodule.eval_dataloader("valid")))["image"]
            with torch.inference_mode():
                threshold = task.eval()(images).quantile(0.9)
            task.network.head.bias.data -= threshold
        trainer.save_checkpoint(folder / "checkpoints" / "last.ckpt")
        return folder

    return make


@pytest.fixture(scope="session")
def fold_root(tmp_path_factory) -> Path:
    """The same 20 phantoms, train and valid divided into three folds. Not to be changed."""
    root = tmp_path_factory.mktemp("data") / "folds"
    write_phantoms(root, 20, size=64, seed=3, folds=3)
    return root


@pytest.fixture
def save_png():
    """Write an array as a picture, making its folder."""

    def save(path: Path, array: np.ndarray) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(path)
        return path

    return save


@pytest.fixture
def shared_file():
    """A path below the shared folder beside the checkout; skips where it is not there."""

    def find(name: str) -> Path:
        path = SHARED / name
        if not path.exists():
            pytest.skip(f"needs {name} of the shared folder, which only developers have")
        return path

    return find
