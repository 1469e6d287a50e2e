"""What serves long calls: clients' pieces, none of which may be long in coming, and threads apart from short calls'."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor
from functools import partial
from typing import TypeVar

from atelier.errors import DeadlineExceededError

Result = TypeVar("Result")


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


def submit(threads: Executor, work: Callable[..., Result], *arguments: object) -> asyncio.Future[Result]:
    """As `asyncio.to_thread`, in these threads: long work must not take those that short calls run in."""
    context = contextvars.copy_context()
    return asyncio.get_running_loop().run_in_executor(threads, partial(context.run, work, *arguments))
