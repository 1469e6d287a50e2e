"""The spool: a folder of this machine in which files wait while they are converted. Calls take turns at it.

Whoever has a turn has a folder of its own, which goes with the turn. Both last until no thread works there any more,
also where the call was cancelled meanwhile: so there are never more folders, nor conversions, than there are turns.
A client that does not go on has its call ended, as its turn is wanted by others; one that is merely slow keeps it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

from atelier.rpc.uploads import room_needed
from services.registry.streams import submit

TURNS = 2
IDLE_SECONDS = 30.0
"""The longest time that a client may take for a message while it has a turn."""
Answer = TypeVar("Answer")


class Spool:
    """Turns at a folder.

    Args:
        prefix: begins the names of the folders in it.
        turns: how many calls use it at the same time; others wait.
    """

    def __init__(self, folder: Path, prefix: str, *, turns: int = TURNS) -> None:
        self._folder = folder
        self._prefix = prefix
        self._turns = asyncio.Semaphore(turns)

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[Path]:
        """A turn, and an empty folder for it. ResourceExhaustedError when the disk is full meanwhile."""
        async with self._turns:
            with room_needed(), TemporaryDirectory(prefix=self._prefix, dir=self._folder) as folder:
                yield Path(folder)


async def finished(work: Callable[[], Answer]) -> Answer:
    """What `work` answers in a thread. Returns when it has ended, also where the call is cancelled meanwhile."""
    # A future rather than a task: nothing but the thread's end can end it.
    running = submit(None, work)
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        while not running.done():
            try:
                await asyncio.wait([running])
            except asyncio.CancelledError:
                continue  # the call is ended already
        running.exception()  # nobody else looks at it
        raise


async def sent_in_time(messages: AsyncIterator[Answer], idle_seconds: float = IDLE_SECONDS) -> AsyncIterator[Answer]:
    """A call's answers; the call is cancelled when its client takes longer than this to receive one."""
    async for message in messages:
        async with asyncio.timeout(idle_seconds):
            yield message
