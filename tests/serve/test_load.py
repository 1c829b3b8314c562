"""Fifty clients at once for a minute, with slow and broken ones among them.

`OVSEG_LOAD_RUN=runs/best_cpu/version_0 python -m pytest -m slow tests/serve -s` measures a run of
yours and prints the numbers of docs/serve.md.
"""

import asyncio
import base64
import io
import os
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import numpy as np
import psutil
import pytest
from PIL import Image

from ovseg.data.prepare.phantoms import make_phantom
from ovseg.inference.predictor import Predictor
from serving import Process, encode, start_process

CLIENTS = 50
SECONDS = 60
SIZE = 512  # of most ultrasound pictures of OTU_2d, about; some are cut


@dataclass
class Tally:
    """What clients saw."""

    latencies: list[float] = field(default_factory=list)
    wrong: int = 0
    refused: int = 0
    others: list[str] = field(default_factory=list)


async def ask(url: str, pictures: list[bytes], masks: list[np.ndarray], tally: Tally) -> None:
    """Send pictures in turn until the time is over, and wait as told where one is refused."""
    end = time.monotonic() + SECONDS
    turn = len(tally.latencies)
    async with httpx2.AsyncClient(timeout=120) as client:
        while time.monotonic() < end:
            turn += 1
            which = turn % len(pictures)
            start = time.monotonic()
            response = await client.post(
                f"{url}/predict?mask=true", files={"file": pictures[which]}
            )
            if response.status_code == 503:
                tally.refused += 1
                await asyncio.sleep(int(response.headers["Retry-After"]))
            elif response.status_code == 200:
                tally.latencies.append(time.monotonic() - start)
                content = base64.b64decode(response.json()["mask"])
                with Image.open(io.BytesIO(content)) as mask:
                    tally.wrong += not np.array_equal(np.array(mask), masks[which])
            else:
                tally.others.append(response.text)


async def disturb(url: str, picture: bytes) -> None:
    """Send half a picture and go away; or the whole one, and go away before the answer."""
    end = time.monotonic() + SECONDS
    address = urlsplit(url)
    body = (
        b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
        + picture
        + b"\r\n--x--\r\n"
    )
    head = (
        f"POST /predict HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Length: {len(body)}\r\n"
        "Content-Type: multipart/form-data; boundary=x\r\n\r\n"
    )
    sizes = (len(body) // 2, len(body))
    turn = 0
    while time.monotonic() < end:
        turn += 1
        _, writer = await asyncio.open_connection(address.hostname, address.port)
        writer.write(head.encode() + body[: sizes[turn % 2]])
        await asyncio.sleep(0.2)
        writer.transport.abort()


async def trickle(url: str) -> None:
    """Send a byte a second."""
    address = urlsplit(url)
    _, writer = await asyncio.open_connection(address.hostname, address.port)
    writer.write(
        f"POST /predict HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Length: 1000000\r\n"
        "Content-Type: multipart/form-data; boundary=x\r\n\r\n"
        '--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'.encode()
    )
    for _ in range(SECONDS - 5):
        writer.write(b"a")
        await asyncio.sleep(1)
    writer.transport.abort()


async def watch(process: Process, sizes: list[float]) -> None:
    """Measure the memory of the server in MB, each second."""
    server = psutil.Process(process.popen.pid)
    for _ in range(SECONDS):
        sizes.append(server.memory_info().rss / 1e6)
        await asyncio.sleep(1)


async def load(
    process: Process, pictures: list[bytes], masks: list[np.ndarray]
) -> tuple[Tally, list[float]]:
    tally = Tally()
    sizes: list[float] = []
    clients = [ask(process.url, pictures, masks, tally) for _ in range(CLIENTS)]
    disturbers = [disturb(process.url, pictures[0]) for _ in range(3)]
    tricklers = [trickle(process.url) for _ in range(20)]
    await asyncio.gather(*clients, *disturbers, *tricklers, watch(process, sizes))
    return tally, sizes


@pytest.mark.slow
def test_fifty_clients_get_right_answers_or_are_told_to_wait(run):
    chosen = Path(os.environ.get("OVSEG_LOAD_RUN", run))
    images = [make_phantom(number, SIZE)[0][: SIZE - 20 * number] for number in range(8)]
    masks = [
        prediction.labels * 255 for prediction in Predictor.load(chosen, "cpu").predict(images, 1)
    ]
    pictures = [encode(image) for image in images]
    with start_process(chosen) as process:
        tally, sizes = asyncio.run(load(process, pictures, masks))
        code, _, errors = process.stop(signal.SIGTERM)

    median, slow = np.percentile(tally.latencies, [50, 95])
    print(
        f"\n{len(tally.latencies) / SECONDS:.1f} answers a second, latency median {median:.2f} s, "
        f"95 % {slow:.2f} s; {tally.refused} refused (503); memory {sizes[0]:.0f} MB at the start, "
        f"{max(sizes[5:30]):.0f} MB at most in the first half, {max(sizes[30:]):.0f} in the second"
    )
    assert tally.others == []
    assert tally.wrong == 0
    assert len(tally.latencies) > 2 * CLIENTS
    assert tally.refused > 0
    assert max(sizes[30:]) < 1.15 * max(sizes[5:30])
    assert (code, errors) == (0, "")
