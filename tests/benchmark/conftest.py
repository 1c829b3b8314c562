"""A tiny workload, and peers that run in the test's own process."""

from concurrent.futures import Executor, Future
from contextlib import contextmanager

import pytest

from ovseg.benchmark.peers import Workload

MODEL = {
    "arch": "flexible_unet",
    "arch_args": {"base_filters": 2, "num_layers": 2, "dropout_rate": 0.0},
    "optimizer_args": {"lr": 0.1},
}


@pytest.fixture
def make_work():
    """A function that makes a workload of one image of 32 x 32 and a tiny network."""

    def make(mode: str = "infer", **changes) -> Workload:
        tiny = {"model": MODEL, "image_size": 32, "batch_size": 1, "threads": 1}
        return Workload(mode, **{**tiny, **changes})

    return make


class _Immediate(Executor):
    """An executor that calls at once, in this process."""

    def submit(self, function, /, *arguments, **named):
        future = Future()
        future.set_result(function(*arguments, **named))
        return future


@pytest.fixture
def in_this_process():
    """In place of `own_process`, which takes seconds to start."""

    @contextmanager
    def start(environment):
        yield _Immediate()

    return start
