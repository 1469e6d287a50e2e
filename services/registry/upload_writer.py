"""Writing to an upload: bytes come in, parts of several MiB go to S3, each with a row that makes it count.

A part counts from the moment that its row is committed, whichever replica wrote it; nothing else is kept of a write.
While one part is on its way to S3 the next one arrives, so a call holds at most two parts and a message in memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Coroutine
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any

from atelier.errors import AbortedError, AtelierError, DeadlineExceededError, InvalidArgumentError, NotFoundError
from atelier.pb.common.v1.common_pb2 import File
from atelier.pb.registry.v1 import registry_pb2 as pb
from atelier.rpc.uploads import data_pieces, first_spec
from atelier.storage.blobs import BlobStore
from atelier.storage.database import Database
from services.registry import upload_rows
from services.registry.streams import chain, received_in_time, submit

PART_BYTES = 8 * 1024 * 1024
MAX_WRITES = 64
"""Calls at the same time, each with about two parts in memory; others wait for their turn."""
MAX_PUTS = 16
"""Parts that go to S3 at the same time, of all calls."""


class Writer:
    """Serves WriteUpload calls.

    Args:
        idle_seconds: how long a client may take for its next bytes.
    """

    def __init__(self, database: Database, blobs: BlobStore, *, idle_seconds: float) -> None:
        self._database = database
        self._blobs = blobs
        self._idle_seconds = idle_seconds
        self._turns = asyncio.Semaphore(MAX_WRITES)
        self._threads = ThreadPoolExecutor(MAX_PUTS, thread_name_prefix="writing")

    async def write(self, messages: AsyncIterator[pb.WriteUploadRequest]) -> pb.Upload:
        """Serves one call."""
        spec: pb.WriteUploadSpec = await first_spec(messages, "a write")
        file = await asyncio.to_thread(_begin, spec, self._database)
        pieces = received_in_time(data_pieces(messages), self._idle_seconds)
        first = await anext(pieces, b"")  # who sends nothing takes no turn
        async with self._turns:
            parts = _PartWriter(spec, file, self._database, self._blobs, self._threads)
            await _write_all(chain(first, pieces), parts)
        return await asyncio.to_thread(_read, spec.upload, self._database)


async def _write_all(pieces: AsyncIterator[bytes], parts: _PartWriter) -> None:
    """Writes the pieces; of a call that ends before its time, those that have come."""
    try:
        async for piece in pieces:
            await parts.add(piece)
    except (asyncio.CancelledError, InvalidArgumentError, DeadlineExceededError):
        with contextlib.suppress(AtelierError):  # the call's own end is what is told
            await _to_the_end(parts.finish())
        raise
    await _to_the_end(parts.finish())


class _PartWriter:
    """Cuts a file's bytes into parts and stores them, one after the other."""

    def __init__(
        self, spec: pb.WriteUploadSpec, file: File, database: Database, blobs: BlobStore, threads: Executor
    ) -> None:
        self._spec = spec
        self._file = file
        self._folder = upload_rows.folder(spec.upload)
        self._database = database
        self._blobs = blobs
        self._threads = threads
        self._offset_bytes = spec.offset_bytes
        """Of the part that is being collected."""
        self._pieces: list[bytes] = []
        self._collected_bytes = 0
        self._storing: asyncio.Future[None] | None = None

    async def add(self, piece: bytes) -> None:
        """Takes the next bytes."""
        missing = self._file.size_bytes - self._offset_bytes - self._collected_bytes
        if len(piece) > missing:
            raise InvalidArgumentError(
                "data", f"goes on beyond the {self._file.size_bytes} bytes of the file", reason="UPLOAD_TOO_LONG"
            )
        self._pieces.append(piece)
        self._collected_bytes += len(piece)
        if self._collected_bytes >= PART_BYTES:
            await self._stored()
            self._begin_storing()

    async def finish(self) -> None:
        """Stores what is left."""
        await self._stored()
        if self._collected_bytes:
            self._begin_storing()
            await self._stored()

    async def _stored(self) -> None:
        """Waits for the part that is on its way."""
        if self._storing is not None:
            await asyncio.shield(self._storing)

    def _begin_storing(self) -> None:
        """Sends the collected part on its way."""
        offset_bytes, content = self._offset_bytes, b"".join(self._pieces)
        self._offset_bytes += len(content)
        self._pieces, self._collected_bytes = [], 0
        self._storing = submit(self._threads, self._store, offset_bytes, content)

    def _store(self, offset_bytes: int, content: bytes) -> None:
        key = f"{self._folder}{secrets.token_hex(16)}"
        self._blobs.put(key, content)
        try:
            with self._database.transaction() as session:
                upload_rows.add_part(
                    session, self._spec.upload, self._file.path, offset_bytes, len(content), object_key=key
                )
        except (AbortedError, NotFoundError):
            self._blobs.delete(key)
            raise


async def _to_the_end(work: Coroutine[Any, Any, None]) -> None:
    """Waits until `work` is done, even when the call is cancelled meanwhile: whoever resumes finds it done."""
    task = asyncio.ensure_future(work)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait((task,))
        task.exception()  # the call's own end is what is told
        raise


def _begin(spec: pb.WriteUploadSpec, database: Database) -> File:
    """The file that is to be written, when it can go on at the offset."""
    with database.transaction(read_only=True) as session:
        row = upload_rows.find(session, spec.upload, "spec.upload")
        file = upload_rows.find_file(row, spec.path)
        upload_rows.check_offset(session, row, file.path, spec.offset_bytes)
        return file


def _read(name: str, database: Database) -> pb.Upload:
    with database.transaction(read_only=True) as session:
        return upload_rows.to_message(session, upload_rows.find(session, name, "spec.upload"))
