"""A server without a socket, predictors and a run to serve."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from ovseg.inference.postprocessing import Postprocessing
from ovseg.inference.predictor import Predictor
from ovseg.serve.server import Server
from serving import BrightNetwork, ColorNetwork, build, make_predictor


@dataclass
class Running:
    """A server, and a client in the same process."""

    server: Server
    client: TestClient

    def post(self, content: bytes, query: str = "", **options: Any):
        """Send a picture to /predict; the response."""
        return self.client.post(f"/predict{query}", files={"file": content}, **options)


@pytest.fixture
def make_running() -> Iterator[Callable[..., Running]]:
    """A function that makes a `Running` of a predictor."""
    with ExitStack() as stack:

        def make(predictor: Predictor, **options) -> Running:
            server = build(predictor, **options)
            stack.callback(server.worker.close)
            client = TestClient(
                server.config.app,
                base_url="http://127.0.0.1:8000",
                raise_server_exceptions=False,
            )
            return Running(server, client)

        yield make


@pytest.fixture
def bright() -> Predictor:
    """White is lesion."""
    return make_predictor(BrightNetwork())


@pytest.fixture
def cleaned() -> Predictor:
    """White is lesion, and only the largest component is kept."""
    return make_predictor(BrightNetwork(), postprocessing=Postprocessing(keep_largest=True))


@pytest.fixture
def colored() -> Predictor:
    """Green is a cyst, blue a teratoma."""
    return make_predictor(ColorNetwork(), categories=("cyst", "teratoma"))


@pytest.fixture
def running(make_running, bright) -> Running:
    return make_running(bright)


@pytest.fixture(scope="session")
def run(make_run, tmp_path_factory) -> Path:
    """A run of one class that places pictures in 32 x 32. Not to be changed."""
    return make_run(tmp_path_factory.mktemp("served") / "tiny" / "version_0")
