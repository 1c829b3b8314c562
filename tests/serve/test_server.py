"""Real connections: slow and broken clients, a full queue, and the end of the server."""

import json
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx2
import numpy as np
import pytest

from ovseg.data.prepare.phantoms import make_phantom
from ovseg.inference.predictor import Predictor
from ovseg.serve import server as server_module
from ovseg.serve import upload
from serving import (
    WaitingNetwork,
    draw_square,
    encode,
    listen,
    make_predictor,
    start_process,
    wait_until,
)

HEAD = (
    b"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\n"
    b"Content-Type: multipart/form-data; boundary=x\r\n"
)
PART = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'


def post(url: str, content: bytes) -> httpx2.Response:
    return httpx2.post(f"{url}/predict", files={"file": content}, timeout=30)


def read_all(connection: socket.socket) -> bytes:
    """What the server sends until it closes the connection."""
    received = b""
    while True:
        part = connection.recv(65536)
        if not part:
            return received
        received += part


@pytest.fixture
def waiting() -> WaitingNetwork:
    network = WaitingNetwork()
    yield network
    network.release.set()


# Slow and broken clients


def test_silent_connection_is_closed(bright, monkeypatch):
    monkeypatch.setattr(server_module, "REQUEST_SECONDS", 0.2)
    with listen(bright) as listening, listening.connect() as connection:
        connection.sendall(HEAD[:30])  # not even its head arrives
        start = time.monotonic()
        assert connection.recv(1) == b""
        assert time.monotonic() - start < 5


def test_trickling_upload_is_refused_and_blocks_nobody(bright, monkeypatch):
    monkeypatch.setattr(upload, "UPLOAD_SECONDS", 1.0)
    with listen(bright) as listening:
        connections = [listening.connect() for _ in range(20)]
        for connection in connections:
            connection.sendall(HEAD + b"Content-Length: 900000\r\n\r\n" + PART)
        wait_until(lambda: listening.server.uploads.held == 20 * len(PART))
        assert post(listening.url, encode(draw_square())).json()["area"] == 30

        for connection in connections:
            answer = read_all(connection)
            assert answer.startswith(b"HTTP/1.1 408 ")
            assert b"did not arrive within 1 s" in answer
            connection.close()
        assert listening.server.uploads.held == 0


def test_half_an_upload_leaves_nothing_behind(bright, caplog):
    with listen(bright) as listening:
        with listening.connect() as connection:
            connection.sendall(HEAD + b"Content-Length: 900000\r\n\r\n" + PART + bytes(5000))
            wait_until(lambda: listening.server.uploads.held > 5000)
        wait_until(lambda: listening.server.uploads.held == 0)
        assert post(listening.url, encode(draw_square())).status_code == 200
    assert caplog.text == ""


def test_upload_without_an_end_is_refused_while_it_is_read(bright):
    chunk = b"8000\r\n" + bytes(0x8000) + b"\r\n"
    with listen(bright, max_bytes=100_000) as listening, listening.connect() as connection:
        connection.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
        connection.sendall(b"%x\r\n%s\r\n" % (len(PART), PART))
        for _ in range(10):
            connection.sendall(chunk)
        answer = read_all(connection)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"more than 0.1 MB" in answer


def test_too_large_upload_is_told_so_though_it_is_not_read(bright):
    with listen(bright, max_bytes=100_000) as listening:
        response = post(listening.url, bytes(5_000_000))
    assert response.status_code == 413


def test_picture_whose_client_went_away_is_dropped(waiting):
    content = encode(draw_square())
    dropped = np.full((32, 32, 3), 9, np.uint8)
    body = PART + encode(dropped) + b"\r\n--x--\r\n"
    request = HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body
    with listen(make_predictor(waiting)) as listening, ThreadPoolExecutor() as pool:
        first = pool.submit(post, listening.url, content)
        wait_until(lambda: len(waiting.seen) == 1)
        with listening.connect() as connection:
            connection.sendall(request)
            wait_until(lambda: listening.server.worker.taken == 2)
        wait_until(lambda: listening.server.worker.taken == 1)
        waiting.release.set()
        assert first.result().status_code == 200
        assert post(listening.url, content).status_code == 200
    assert dropped.sum() not in waiting.seen
    assert draw_square().sum() in waiting.seen


def test_pictures_beyond_the_queue_are_refused_at_once(waiting):
    content = encode(draw_square())
    with listen(make_predictor(waiting), places=2) as listening, ThreadPoolExecutor() as pool:
        accepted = [pool.submit(post, listening.url, content) for _ in range(2)]
        wait_until(lambda: listening.server.worker.taken == 2)
        refused = post(listening.url, content)
        assert refused.status_code == 503
        assert int(refused.headers["Retry-After"]) >= 1
        waiting.release.set()
        assert [future.result().status_code for future in accepted] == [200, 200]


# The end


def test_stop_answers_what_is_in_work_and_refuses_the_rest(waiting):
    content = encode(draw_square())
    with (
        listen(make_predictor(waiting)) as listening,
        ThreadPoolExecutor() as pool,
        listening.connect() as arriving,
    ):
        in_work = pool.submit(post, listening.url, content)
        wait_until(lambda: len(waiting.seen) == 1)
        arriving.sendall(HEAD + b"Content-Length: 900000\r\n\r\n" + PART)
        wait_until(lambda: listening.server.uploads.held > len(content) + 100)

        listening.stop()
        assert b"503 Service Unavailable" in read_all(arriving)
        refused = post(listening.url, content)
        assert (refused.status_code, refused.json()["detail"]) == (503, "The server is stopping.")
        waiting.release.set()
        assert in_work.result().json()["area"] == 30
        listening.thread.join(10)
        assert not listening.thread.is_alive()


def test_second_signal_does_not_wait(waiting):
    with listen(make_predictor(waiting)) as listening, listening.connect() as connection:
        content = encode(draw_square())
        body = PART + content + b"\r\n--x--\r\n"
        connection.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        wait_until(lambda: len(waiting.seen) == 1)
        listening.stop()
        time.sleep(0.3)
        assert listening.thread.is_alive()
        threading.Timer(0.5, waiting.release.set).start()  # threads can't be killed
        listening.stop()
        listening.thread.join(5)
        assert not listening.thread.is_alive()


# The command


def test_command_serves_what_the_predictor_predicts(run):
    image = make_phantom(1, 64)[0][:40]
    prediction = Predictor.load(run, "cpu").predict(image)
    with start_process(run) as process:
        answer = post(process.url, encode(image)).json()
        page = httpx2.get(process.url)
        code, output, errors = process.stop(signal.SIGTERM)
    assert answer["area"] == np.count_nonzero(prediction.labels) > 0
    assert "tiny/version_0" in page.text
    sha256 = answer["model"]["sha256"]
    assert output == (
        f"tiny/version_0 (sha256 {sha256[:12]}) is served at {process.url}/\n"
        "Ctrl-C stops it.\nStopped.\n"
    )
    assert (code, errors) == (0, "")


def test_command_warns_where_others_can_reach_it(run):
    with start_process(run, "--host", "0.0.0.0") as process:
        response = httpx2.get(f"{process.url}/health", headers={"Host": "ward3"})
        code, _, errors = process.stop(signal.SIGINT)
    assert response.json()["status"] == "ok"
    assert code == 0
    assert errors.startswith("warning: whoever reaches 0.0.0.0 can use this server: ")
    assert errors.count("\n") == 1


def test_port_in_use_is_one_line(run, run_command, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert run_command("serve", "--run", run, "--port", port) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: Cannot listen on port {port} of 127.0.0.1: Address already in")
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (["--run", "gone", "--port", "0"], "There is no folder gone"),
        (["--run", "x", "--port", "70000"], "--port is 70000, expected 0 to 65535"),
        (["--run", "x", "--queue", "0"], "--queue is 0, expected 1 to 10000"),
        (["--run", "x", "--max_mb", "0"], "--max_mb is 0, expected 1 to 1000"),
        (["--run", "x", "--host", "no such name", "--port", "0"], "Cannot listen on port 0"),
    ],
)
def test_mistakes_are_one_line(options, part, run_command, capsys):
    assert run_command("serve", *options) == 2
    error = capsys.readouterr().err
    assert part in error
    assert error.count("\n") == 1


def test_health_is_plain_json(bright):
    with listen(bright) as listening, listening.connect() as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        head, _, body = read_all(connection).partition(b"\r\n\r\n")
    assert b"connection: close" in head.lower()
    assert json.loads(body)["status"] == "ok"
