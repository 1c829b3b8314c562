"""Tiny phantoms for every test, no network, and the shared real data where a checkout has it."""

import os
import socket
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "2")

import numpy as np
import pytest
import torch
from PIL import Image

from ovseg.data.phantoms import write_phantoms

REPOSITORY = Path(__file__).resolve().parents[1]
SHARED = REPOSITORY.parent / "shared"


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Only loopback sockets: a test that reaches out fails."""
    connect = socket.socket.connect

    def guarded(self, address):
        if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in ("127.0.0.1", "::1", "localhost"):
            raise RuntimeError(f"A test tried to reach {address}.")
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture(autouse=True)
def seeded():
    """The same random weights in every run."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def phantom_root(tmp_path_factory) -> Path:
    """A dataset of 20 phantoms of 64 x 64: 14 train, 3 valid, 3 test. Not to be changed."""
    root = tmp_path_factory.mktemp("data") / "phantoms"
    write_phantoms(root, 20, size=64, seed=3)
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
