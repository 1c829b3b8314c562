"""Run the application until it is told to stop."""

import asyncio
import ipaddress
import logging
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

import numpy as np
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from ovseg.core.errors import InputError, system_reason
from ovseg.inference.predictor import Predictor
from ovseg.serve.answer import ModelDescription, describe_model
from ovseg.serve.app import build_app
from ovseg.serve.guard import Guard
from ovseg.serve.upload import UPLOAD_SECONDS, Uploads
from ovseg.serve.worker import ANSWER_SECONDS, Worker

LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")
REQUEST_SECONDS = 10.0  # in which the head of a request must have arrived
SEND_SECONDS = 60.0  # for an answer to arrive
CONNECTION_SECONDS = REQUEST_SECONDS + UPLOAD_SECONDS + ANSWER_SECONDS + SEND_SECONDS
STOP_SECONDS = 10  # for answers to arrive when the server stops


class TimedProtocol(H11Protocol):
    """HTTP of which a connection lasts a bounded time.

    uvicorn has no limit for a client that sends no request, or does not read its answer.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.loop.call_later(REQUEST_SECONDS, self._end_if_silent)
        self.loop.call_later(CONNECTION_SECONDS, transport.abort)

    def _end_if_silent(self) -> None:
        if self.cycle is None:
            self.transport.abort()


class Server(uvicorn.Server):
    """A server that, told to stop, first answers the pictures it has, and refuses new ones."""

    def __init__(self, config: uvicorn.Config, worker: Worker, uploads: Uploads):
        super().__init__(config)
        self.worker = worker
        self.uploads = uploads
        self._told_to_stop = False

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until told to stop."""
        try:
            super().run(sockets)
        finally:
            self.worker.close()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Take SIGINT and SIGTERM; the second one ends the server at once."""
        if self._told_to_stop:
            self.should_exit = True
            self.force_exit = True
        self._told_to_stop = True

    async def on_tick(self, counter: int) -> bool:
        """Called ten times a second; whether to end."""
        if self._told_to_stop and not self.worker.stopping:
            self.worker.stopping = True
            self.uploads.stop()
        is_done = self.worker.stopping and self.worker.taken == 0
        return await super().on_tick(counter) or is_done


def serve(
    run: Path | None,
    host: str = "127.0.0.1",
    port: int = 8000,
    device: str = "auto",
    places: int = 16,
    max_mb: int = 50,
) -> None:
    """Serve a model on a page and to programs, until SIGINT or SIGTERM.

    Args:
        run: see `source` of `Predictor.load`.
        host: name or address of this machine to be reached by.
        port: 0 for any free one.
        device: see `Predictor.load`.
        places: how many pictures may wait or be in work.
        max_mb: largest picture that is taken, in 10^6 bytes.

    Raises:
        InputError: a number is out of range, the address can't be used, or the run can't be loaded.
    """
    _check_range("port", port, 0, 65535)
    _check_range("queue", places, 1, 10_000)
    _check_range("max_mb", max_mb, 1, 1000)
    with _listen(host, port) as listener:
        predictor = Predictor.load(run, device)
        predictor.predict(np.zeros((64, 64, 3), np.uint8))  # the first one builds the engine
        model = describe_model(run, predictor)
        server = make_server(predictor, model, places, max_mb * 10**6, _allowed_hosts(host))
        _announce(model, host, listener.getsockname()[1])
        server.run(sockets=[listener])


def make_server(
    predictor: Predictor,
    model: ModelDescription,
    places: int,
    max_bytes: int,
    hosts: Sequence[str] | None,
) -> Server:
    """A server that is ready to run.

    Args:
        predictor: of the model.
        model: its description.
        places: see `Worker`.
        max_bytes: see `Uploads`.
        hosts: see `Guard`.
    """
    # A client that sends a broken form is told so, and need not fill the terminal.
    logging.getLogger("python_multipart").setLevel(logging.CRITICAL)
    worker = Worker(predictor, model, places)
    uploads = Uploads(max_bytes)
    config = uvicorn.Config(
        Guard(build_app(worker, uploads), hosts),
        http=TimedProtocol,
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="critical",  # build_app logs errors itself
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=STOP_SECONDS,
    )
    return Server(config, worker, uploads)


def _check_range(name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise InputError(f"--{name} is {value}, expected {low} to {high}.")


def _listen(host: str, port: int) -> socket.socket:
    """A socket that listens."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=128)
    except OSError as error:
        raise InputError(
            f"Cannot listen on port {port} of {host}: {system_reason(error)}. Choose another "
            "--port or --host."
        ) from None


def _is_loopback(host: str) -> bool:
    """Whether only programs of this machine reach an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _allowed_hosts(host: str) -> tuple[str, ...] | None:
    """The names by which clients may call the server; None for any."""
    return (*LOOPBACK_NAMES, host) if _is_loopback(host) else None


def _announce(model: ModelDescription, host: str, port: int) -> None:
    if not _is_loopback(host):
        print(
            f"warning: whoever reaches {host} can use this server: it asks for no password, and "
            "pictures travel without encryption. See docs/serve.md for a proxy that does.",
            file=sys.stderr,
        )
    shown = f"[{host}]" if ":" in host else host
    print(f"{model.name} (sha256 {model.sha256[:12]}) is served at http://{shown}:{port}/")
    print("Ctrl-C stops it.", flush=True)
