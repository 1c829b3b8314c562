"""Read the picture of a form into memory, within limits of size and time."""

import asyncio
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager

from fastapi import HTTPException, Request
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

FIELD = "file"  # of the form
# The longest a picture may take to arrive: 50 MB at 7 Mbit/s.
UPLOAD_SECONDS = 60.0
# So many uploads of the largest size are held in memory at once; smaller ones may be more.
UPLOADS_IN_MEMORY = 8


class InMemoryParser(MultiPartParser):
    """Starlette's parser of forms, which else writes files above 1 MB to the disk."""

    spool_max_size = 2**40


class Uploads:
    """The uploads that the server holds; of all of them together the memory is bounded.

    Args:
        max_bytes: of one upload.
    """

    def __init__(self, max_bytes: int):
        self.max_bytes = max_bytes
        self.held = 0  # bytes
        self.stopping = False
        self._limits: set[asyncio.Timeout] = set()

    def stop(self) -> None:
        """Refuse the uploads that are arriving, and further ones."""
        self.stopping = True
        for limit in self._limits:
            if not limit.expired():
                limit.reschedule(asyncio.get_running_loop().time())

    @contextmanager
    def count(self) -> Iterator["Count"]:
        """Count the bytes of one upload as held until the block ends."""
        count = Count(self)
        try:
            yield count
        finally:
            self.held -= count.bytes

    async def read(self, request: Request, count: "Count") -> bytes:
        """The file of a form, which is in the field `FIELD`.

        Args:
            request: with the form as its body.
            count: of this upload.

        Raises:
            HTTPException: 400 for a broken form, 408 for one that arrives too slowly, 413 for one
                that is too large, 415 for another kind of body, 422 for a form without the file,
                503 where memory is full or the server stops.
            ClientDisconnect: the client went away.
        """
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "multipart/form-data":
            raise HTTPException(
                415,
                f"The body is {kind or 'of no named kind'}, expected multipart/form-data with the "
                f"picture in the field {FIELD!r}.",
            )
        length = request.headers.get("content-length", "")
        if length.isdecimal() and int(length) > self.max_bytes:
            raise self._too_large()
        try:
            async with asyncio.timeout(UPLOAD_SECONDS) as limit:
                self._limits.add(limit)
                try:
                    return await self._parse(request, count)
                finally:
                    self._limits.remove(limit)
        except MultiPartException as error:
            raise HTTPException(400, f"The form cannot be read: {error.message}") from None
        except TimeoutError:
            if self.stopping:
                raise HTTPException(503, "The server is stopping.", {"Retry-After": "10"}) from None
            raise HTTPException(
                408, f"The picture did not arrive within {UPLOAD_SECONDS:g} s. Try again."
            ) from None

    async def _parse(self, request: Request, count: "Count") -> bytes:
        parser = InMemoryParser(
            request.headers, self._read_chunks(request, count), max_files=1, max_fields=10
        )
        form = await parser.parse()
        try:
            file = form.get(FIELD)
            if not isinstance(file, UploadFile):
                raise HTTPException(
                    422, f"The form has no file in the field {FIELD!r}. Send the picture there."
                )
            return await file.read()
        finally:
            await form.close()

    async def _read_chunks(self, request: Request, count: "Count") -> AsyncGenerator[bytes, None]:
        async for chunk in request.stream():
            count.add(len(chunk))
            if count.bytes > self.max_bytes:
                raise self._too_large()
            if self.held > UPLOADS_IN_MEMORY * self.max_bytes:
                raise HTTPException(
                    503,
                    "Too many large pictures are arriving at once. Try again in 5 s.",
                    {"Retry-After": "5"},
                )
            yield chunk

    def _too_large(self) -> HTTPException:
        return HTTPException(
            413,
            f"The picture has more than {self.max_bytes / 1e6:g} MB, the most that this server "
            "takes (--max_mb). Send a smaller file.",
        )


class Count:
    """The bytes of one upload so far."""

    def __init__(self, uploads: Uploads):
        self.uploads = uploads
        self.bytes = 0

    def add(self, size: int) -> None:
        self.bytes += size
        self.uploads.held += size
