"""Servers of a network whose masks can be worked out by hand, and a real one."""

import io
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from ovseg.inference.predictor import LoadedNetwork, Predictor
from ovseg.serve.answer import ModelDescription
from ovseg.serve.server import LOOPBACK_NAMES, Server, make_server


class BrightNetwork(nn.Module):
    """The logit of lesion is 10 in white pixels, -10 in black ones, linear between."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.float().mean(1, keepdim=True) * (20 / 255) - 10


class ColorNetwork(nn.Module):
    """Green pixels are category 1, blue ones category 2, others background."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits = images.float()
        logits[:, 0] = 128
        return logits


class WaitingNetwork(BrightNetwork):
    """It waits for `release` with each picture, and lists the sums of their pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.release = threading.Event()
        self.seen: list[float] = []

    def __deepcopy__(self, memo: dict) -> "WaitingNetwork":
        return self  # an engine works on a copy, which could not be released

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.seen.append(float(images.sum()))
        assert self.release.wait(20)
        return super().forward(images)


def make_predictor(network: nn.Module, **options) -> Predictor:
    """A predictor that places pictures in 32 x 32."""
    member = LoadedNetwork(network, 32, "letterbox", torch.device("cpu"))
    return Predictor([member], **options)


def build(predictor: Predictor, places: int = 4, max_bytes: int = 10**6) -> Server:
    """A server of a predictor that is no run."""
    postprocessing = predictor.postprocessing
    model = ModelDescription(
        name="bright/version_0",
        version="0.1.0",
        sha256="0123456789abcdef" * 4,
        data="phantoms",
        image_sizes=[32],
        categories=list(predictor.categories),
        threshold=None if predictor.categories else postprocessing.threshold,
        cleanup=["largest component"] if postprocessing.keep_largest else [],
    )
    return make_server(predictor, model, places, max_bytes, LOOPBACK_NAMES)


def draw_square() -> np.ndarray:
    """RGB, 32 x 32, black, with 30 white pixels: rows 4 to 8, columns 10 to 15."""
    image = np.zeros((32, 32, 3), np.uint8)
    image[4:9, 10:16] = 255
    return image


def encode(image: np.ndarray, kind: str = "PNG") -> bytes:
    """The file of a picture."""
    content = io.BytesIO()
    Image.fromarray(image).save(content, kind)
    return content.getvalue()


@dataclass
class Listening:
    """A server that listens in a thread of this process."""

    server: Server
    port: int
    thread: threading.Thread

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=10)

    def stop(self) -> None:
        """Tell the server to stop, as SIGTERM does in a process of its own."""
        self.server.handle_exit(signal.SIGTERM, None)


@contextmanager
def listen(predictor: Predictor, **options) -> Iterator[Listening]:
    """Serve in a thread until the block ends."""
    server = build(predictor, **options)
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    listening = Listening(server, port, thread)
    try:
        wait_until(lambda: server.started)
        yield listening
    finally:
        listening.stop()
        thread.join(30)
        assert not thread.is_alive()


def wait_until(condition: Callable[[], bool], seconds: float = 10) -> None:
    """Wait for something that another thread does."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)


@dataclass
class Process:
    """`ovseg serve` in a process of its own."""

    popen: subprocess.Popen
    url: str
    first_lines: str

    def stop(self, number: int) -> tuple[int, str, str]:
        """Send a signal; the exit code, and what was written since the start."""
        self.popen.send_signal(number)
        output, errors = self.popen.communicate(timeout=30)
        return self.popen.returncode, self.first_lines + output, errors


@contextmanager
def start_process(run: Path, *options: str) -> Iterator[Process]:
    """Start `ovseg serve` on a free port, wait until it serves, and end it with the block."""
    command = [sys.executable, "-m", "ovseg", "serve", "--run", str(run), "--port", "0"]
    popen = subprocess.Popen(
        [*command, "--device", "cpu", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with popen:
        try:
            first_lines = popen.stdout.readline() + popen.stdout.readline()
            port = re.search(r":(\d+)/", first_lines)[1]
            yield Process(popen, f"http://127.0.0.1:{port}", first_lines)
        finally:
            popen.kill()
