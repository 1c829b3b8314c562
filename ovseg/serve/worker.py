"""Pictures wait, are decoded, predicted one at a time, and answered; too many are refused."""

import asyncio
import math
import time
from collections.abc import Awaitable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import numpy as np
from fastapi import HTTPException, Request
from starlette.requests import ClientDisconnect

from ovseg.core.errors import InputError
from ovseg.inference.guided import Ends, predict_guided
from ovseg.inference.predictor import Prediction, Predictor
from ovseg.serve.answer import ModelDescription, Wanted, make_answer
from ovseg.serve.decode import decode_picture

Result = TypeVar("Result")

# Decoded pictures in memory: one is being decoded, one predicted, one written as an answer.
IN_WORK = 3
THREADS = 2  # that decode pictures and write answers, beside the one of the network
# For the answer, from the end of the upload on; then 504.
ANSWER_SECONDS = 120.0


class Worker:
    """Answers pictures, of which a bounded number may wait.

    PyTorch uses all cores for one picture, so a second one at the same time would gain nothing.
    All methods are called in the thread of the server's event loop.

    Args:
        predictor: of the model.
        model: its description.
        places: how many pictures may wait or be in work.
    """

    def __init__(self, predictor: Predictor, model: ModelDescription, places: int):
        self.predictor = predictor
        self.model = model
        self.places = places
        self.taken = 0
        self.stopping = False
        self._seconds = 0.0  # that the network took for the last picture
        self._in_work = asyncio.Semaphore(IN_WORK)
        self._network = ThreadPoolExecutor(1)
        self._pool = ThreadPoolExecutor(THREADS)

    def check_place(self) -> None:
        """Raise HTTPException 503 where a picture would be refused now."""
        if self.stopping:
            raise HTTPException(503, "The server is stopping.", {"Retry-After": "10"})
        if self.taken >= self.places:
            wait = max(1, math.ceil(self.taken * self._seconds))
            raise HTTPException(
                503,
                f"{self.taken} pictures are waiting already, and no more may (--queue). Try again "
                f"in {wait} s.",
                {"Retry-After": str(wait)},
            )

    async def answer(self, content: bytes, wanted: Wanted, request: Request) -> bytes:
        """Answer a picture.

        Args:
            content: of its file.
            wanted: which frame, which ends of the lesion are marked, and what to answer.
            request: whose client waits; when it goes away, its picture is dropped.

        Returns:
            An `ovseg.serve.answer.Answer` as JSON.

        Raises:
            HTTPException: 400 for a picture that can't be read or ends that don't fit it, 503
                where too many wait, 504 after `ANSWER_SECONDS`.
            ClientDisconnect: the client went away.
        """
        with self._take_place():
            return await _finish_or_drop(self._answer(content, wanted), request)

    @contextmanager
    def _take_place(self) -> Iterator[None]:
        self.check_place()
        self.taken += 1
        try:
            yield
        finally:
            self.taken -= 1

    async def _answer(self, content: bytes, wanted: Wanted) -> bytes:
        loop = asyncio.get_running_loop()
        async with self._in_work:
            try:
                picture = await loop.run_in_executor(
                    self._pool, decode_picture, content, wanted.frame
                )
                prediction = await loop.run_in_executor(
                    self._network, self._predict, picture.image, wanted.calipers
                )
            except InputError as error:
                raise HTTPException(400, str(error)) from None
            return await loop.run_in_executor(
                self._pool,
                make_answer,
                picture,
                prediction,
                self.predictor.postprocessing,
                self.model,
                wanted,
            )

    def _predict(self, image: np.ndarray, calipers: Sequence[Ends]) -> Prediction:
        start = time.perf_counter()
        if calipers:
            prediction = predict_guided(self.predictor, image, calipers)
        else:
            prediction = self.predictor.predict(image)
        self._seconds = time.perf_counter() - start
        return prediction

    def close(self) -> None:
        """End the threads when they have finished what they are at."""
        self._network.shutdown(cancel_futures=True)
        self._pool.shutdown(cancel_futures=True)


async def _finish_or_drop(work: Awaitable[Result], request: Request) -> Result:
    """The result of some work, which is dropped when its client goes away or it takes too long."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_wait_until_gone(request))
    try:
        await asyncio.wait(
            {task, gone}, timeout=ANSWER_SECONDS, return_when=asyncio.FIRST_COMPLETED
        )
        if task.done():
            return task.result()
        if gone.done():
            raise ClientDisconnect
        raise HTTPException(
            504,
            f"The answer took longer than {ANSWER_SECONDS:g} s and was given up. Try again when "
            "fewer pictures wait.",
        )
    finally:
        task.cancel()
        gone.cancel()


async def _wait_until_gone(request: Request) -> None:
    """Return when the client has closed the connection; its upload must have been read."""
    while (await request.receive())["type"] != "http.disconnect":
        continue
