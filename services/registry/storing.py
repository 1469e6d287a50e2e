"""Storing files in S3 in one pass: hashed, checked and uploaded piece by piece as they come, with flat memory.

Nothing is written to disk. A file's last bytes are given to S3 only when its length, SHA-256 and content are right, so
a wrong or broken upload never becomes an object. Every storing takes a fresh key (`object_key`). What was stored
belongs to nobody until a transaction names it (`commit`); objects that a killed process leaves are garbage.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime

import structlog

from atelier.diffusion.safetensors_header import SafetensorsHeader
from atelier.errors import AtelierError, CancelledError, InvalidArgumentError
from atelier.pb.common.v1.common_pb2 import File
from atelier.rpc.uploads import ended_early, too_long, wrong_sha256
from atelier.storage.blobs import BlobStore
from atelier.storage.database import utc_now
from services.registry import metrics
from services.registry.content import open_check
from services.registry.streams import PieceQueue, Pieces, chain, received_in_time, submit

BLOBS_PREFIX = "registry/blobs/"
MAX_STREAMS = 32
"""Uploads that are stored at the same time, each with up to 48 MiB in memory; others wait for their turn."""
IDLE_SECONDS = 30.0
"""Turns are few: who takes longer for the next bytes loses his."""
MAX_TENSORS = 50_000
"""Of a version, over all its files: their headers stay in memory until it is committed."""
_log = structlog.get_logger("atelier.registry")


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredFile:
    """A file whose bytes are in S3 and right."""

    path: str
    size_bytes: int
    sha256: str
    object_key: str
    begin_time: datetime
    """When the storing began: the object is not older than that."""
    header: SafetensorsHeader | None
    """Of a safetensors file."""


class Storer:
    """Puts files into S3.

    Args:
        idle_seconds: how long a client may take for its next bytes.
    """

    def __init__(self, blobs: BlobStore, *, idle_seconds: float = IDLE_SECONDS) -> None:
        self._blobs = blobs
        self._idle_seconds = idle_seconds
        self._turns = asyncio.Semaphore(MAX_STREAMS)
        self._threads = ThreadPoolExecutor(MAX_STREAMS, thread_name_prefix="storing")

    async def store_files(self, pieces: AsyncIterator[bytes], files: Sequence[File], *, field: str) -> list[StoredFile]:
        """Stores the files whose bytes follow one another in a client's stream. Either all are stored or none.

        Args:
            field: the request's field that holds the files, as errors name it.

        Raises:
            InvalidArgumentError: the stream ended early or went on too long, or a file is not what it should be.
            DeadlineExceededError: the client sends nothing.
        """
        pieces = received_in_time(pieces, self._idle_seconds)
        first = await anext(pieces, b"")  # who sends nothing takes no turn
        async with self._turns:
            queue = PieceQueue()
            feeding = asyncio.create_task(queue.feed(chain(first, pieces)))
            storing = submit(self._threads, self._store, Pieces(queue), files, field)
            try:
                await asyncio.wait((storing,))
            except asyncio.CancelledError:
                queue.put(CancelledError("the upload was broken off"))
                await asyncio.wait((storing,))
                if storing.exception() is None:
                    await asyncio.to_thread(self.discard, storing.result())
                raise
            finally:
                feeding.cancel()
            return storing.result()

    def store_content(self, pieces: Iterable[bytes], file: File, field: str) -> StoredFile:
        """Stores one file whose bytes are there already; `field` names the file in errors. Blocks."""
        source = Pieces(iter(pieces))
        stored = self._store_next(source, file, field)
        if source.take(1):
            self.discard([stored])
            raise too_long(field)
        return stored

    def lost(self, size_bytes: Mapping[str, int]) -> set[str]:
        """Those of these keys under which the store has nothing, or something of another size."""
        return {key for key, size in size_bytes.items() if self._blobs.size_bytes(key) != size}

    @contextmanager
    def all_or_none(self) -> Iterator[list[StoredFile]]:
        """An empty list for what is stored in the block, all of which is discarded when the block fails."""
        stored: list[StoredFile] = []
        try:
            yield stored
        except BaseException:
            self.discard(stored)
            raise

    def discard(self, stored: Iterable[StoredFile]) -> None:
        """Deletes what was stored for nothing; what cannot be deleted now is left to the garbage collection."""
        keys = [file.object_key for file in stored]
        try:
            self._blobs.delete_many(keys)
        except AtelierError as error:
            _log.warning("objects left behind", count=len(keys), reason=error.reason)

    def _store(self, source: Pieces, files: Sequence[File], field: str) -> list[StoredFile]:
        with self.all_or_none() as stored:
            for index, file in enumerate(files):
                stored.append(self._store_next(source, file, f"{field}[{index}]"))
                check_tensor_count(stored, field)
            if source.take(1):
                raise too_long(field)
        return stored

    def _store_next(self, source: Pieces, file: File, field: str) -> StoredFile:
        reader = _CheckedFile(source, file, field)
        key, begin_time = object_key(file.sha256), utc_now()
        self._blobs.put_stream(key, reader, file.size_bytes)
        metrics.STORED_BYTES.inc(file.size_bytes)
        return StoredFile(
            path=file.path,
            size_bytes=file.size_bytes,
            sha256=file.sha256,
            object_key=key,
            begin_time=begin_time,
            header=reader.header,
        )


def check_tensor_count(stored: Iterable[StoredFile], field: str) -> None:
    """Refuses the files of a version, or the first of them, that have too many tensors together."""
    count = sum(len(file.header.tensors) for file in stored if file.header is not None)
    if count > MAX_TENSORS:
        raise InvalidArgumentError(
            field, f"have {count} tensors or more; at most {MAX_TENSORS} are allowed", reason="TOO_MANY_TENSORS"
        )


def object_key(sha256: str) -> str:
    """A fresh key for a content."""
    return f"{BLOBS_PREFIX}{sha256[:2]}/{sha256}/{secrets.token_hex(8)}"


class _CheckedFile:
    """One file's bytes on their way to S3, which end with an error unless they are right."""

    def __init__(self, source: Pieces, file: File, field: str) -> None:
        self.header: SafetensorsHeader | None = None
        self._source = source
        self._file = file
        self._field = field
        self._missing = file.size_bytes
        self._digest = hashlib.sha256()
        self._check = open_check(file, field)

    def read(self, size_bytes: int) -> bytes:
        """The next bytes in one piece: so many, or those up to the file's end."""
        taken: list[bytes] = []
        wanted = min(size_bytes, self._missing)
        while wanted:
            piece = self._source.take(wanted)
            if not piece:
                raise ended_early(self._file, self._field, self._missing)
            self._digest.update(piece)
            self._check.update(piece)
            taken.append(piece)
            wanted -= len(piece)
            self._missing -= len(piece)
        if taken and not self._missing:
            self._finish()
        return b"".join(taken)

    def _finish(self) -> None:
        if self._digest.hexdigest() != self._file.sha256:
            raise wrong_sha256(self._file, self._field, self._digest.hexdigest())
        self.header = self._check.finish()
