"""What serves long calls: clients' pieces, none of which may be long in coming, and threads apart from short calls'."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Executor
from functools import partial
from queue import SimpleQueue
from typing import TypeVar

from atelier.errors import DeadlineExceededError

Result = TypeVar("Result")
QUEUED_PIECES = 8
"""Messages of an upload, of at most 2 MiB each, that may wait while a part goes to S3."""


async def received_in_time(pieces: AsyncIterator[bytes], idle_seconds: float) -> AsyncIterator[bytes]:
    """What a client sends. DeadlineExceededError when it takes longer than this for a piece that is waited for."""
    while True:
        try:
            async with asyncio.timeout(idle_seconds):
                piece = await anext(pieces, b"")
        except TimeoutError as error:
            raise DeadlineExceededError(
                f"nothing came for {idle_seconds:g} seconds; an upload that pauses gives its turn up",
                reason="UPLOAD_IDLE",
            ) from error
        if not piece:
            return
        yield piece


async def chain(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """A piece that was taken already, before the others."""
    yield first
    async for piece in rest:
        yield piece


def submit(threads: Executor | None, work: Callable[..., Result], *arguments: object) -> asyncio.Future[Result]:
    """As `asyncio.to_thread`, but a future, and in these threads: long work must not take those of short calls.

    None means those of short calls.
    """
    context = contextvars.copy_context()
    return asyncio.get_running_loop().run_in_executor(threads, partial(context.run, work, *arguments))


class Pieces:
    """The bytes of one or more files, however they are cut."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._rest = b""

    def take(self, at_most: int) -> bytes:
        """The next bytes; none at the end."""
        while not self._rest:
            piece = next(self._pieces, None)
            if piece is None:
                return b""
            self._rest = piece
        taken, self._rest = self._rest[:at_most], self._rest[at_most:]
        return taken


class PieceQueue(Iterator[bytes]):
    """Pieces that a thread takes from the event loop, of which only a few wait at a time."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._room = asyncio.Semaphore(QUEUED_PIECES)
        self._queue: SimpleQueue[bytes | Exception] = SimpleQueue()

    async def feed(self, pieces: AsyncIterator[bytes]) -> None:
        """Hands the pieces on, then the end, or the error that ended them."""
        try:
            async for piece in pieces:
                await self._room.acquire()
                self.put(piece)
            self.put(StopIteration())
        except Exception as error:
            self.put(error)

    def put(self, item: bytes | Exception) -> None:
        """Lets the thread's next step give this piece or raise this error."""
        self._queue.put(item)

    def __next__(self) -> bytes:
        item = self._queue.get()
        if isinstance(item, Exception):
            self._queue.put(item)  # the end stays the end
            raise item
        self._loop.call_soon_threadsafe(self._room.release)
        return item
