"""Receiving files over a client stream: declared first, then their bytes, checked as they come.

The bytes of all files follow one another in the declared order, cut into messages anywhere. What arrives is
written to a folder of the caller's, hashed on the way; a file is handed on only when its length and SHA-256
are the declared ones. Nothing is kept of a failed upload but what the caller's folder holds.
"""

from __future__ import annotations

import errno
import hashlib
import io
import re
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from atelier.errors import InvalidArgumentError, ResourceExhaustedError
from atelier.pb.common.v1.common_pb2 import File
from atelier.rpc.names import shown

MAX_FILES = 1000
PIECE_BYTES = 1024 * 1024
"""What our own clients send in a message."""
MAX_PIECE_BYTES = 2 * 1024 * 1024
"""What a service takes in a message."""
_SHA256 = re.compile(r"[0-9a-f]{64}")
_PATH = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)*")
_MAX_PATH_CHARACTERS = 200


def is_safe_path(path: str) -> bool:
    """Whether a file's path is relative, plain, and stays below the folder that it is joined to."""
    return len(path) <= _MAX_PATH_CHARACTERS and _PATH.fullmatch(path) is not None


def check_files(files: Sequence[File], field: str, *, max_file_bytes: int) -> None:
    """Refuses what no upload can fulfil: no files, unsafe or double paths, odd sizes or digests. As `receive_files`."""
    if not 1 <= len(files) <= MAX_FILES:
        raise InvalidArgumentError(field, f"holds {len(files)} files; 1 to {MAX_FILES} are allowed")
    seen: set[str] = set()
    for index, file in enumerate(files):
        where = f"{field}[{index}]"
        if not is_safe_path(file.path):
            rule = "a relative path of letters, digits, '_', '-', '.' and '/' whose parts do not start with '.'"
            raise InvalidArgumentError(f"{where}.path", f"is {shown(file.path)}; allowed is {rule}")
        if file.path in seen:
            raise InvalidArgumentError(f"{where}.path", f"{shown(file.path)} is there twice; paths are unique")
        seen.add(file.path)
        check_size_and_digest(file, where, max_file_bytes=max_file_bytes)


def check_size_and_digest(file: File, field: str, *, max_file_bytes: int) -> None:
    """Refuses a size or digest that no file's bytes can have; its path may be anything."""
    if not 0 < file.size_bytes <= max_file_bytes:
        raise InvalidArgumentError(
            f"{field}.size_bytes", f"is {file.size_bytes}; 1 to {max_file_bytes} bytes are allowed"
        )
    if not _SHA256.fullmatch(file.sha256):
        raise InvalidArgumentError(f"{field}.sha256", "must be 64 lower-case hexadecimal digits")


async def first_spec(messages: AsyncIterator[Any], what: str) -> Any:
    """The spec in a stream's first message; `what` names the stream in errors, such as `an import`."""
    first = await anext(messages, None)
    if first is None or first.WhichOneof("content") != "spec":
        raise InvalidArgumentError("spec", f"is missing; the first message of {what} carries it")
    return first.spec


async def data_pieces(messages: AsyncIterator[Any]) -> AsyncIterator[bytes]:
    """The bytes of an upload's messages after the first, each of which must carry `data` and not too much of it."""
    async for message in messages:
        if message.WhichOneof("content") != "data":
            raise InvalidArgumentError("data", "is missing; every message after the first carries the next bytes")
        if len(message.data) > MAX_PIECE_BYTES:
            raise InvalidArgumentError("data", f"has {len(message.data)} bytes; at most {MAX_PIECE_BYTES} are allowed")
        if message.data:
            yield message.data


async def receive_files(pieces: AsyncIterator[bytes], files: Sequence[File], folder: Path, *, field: str) -> list[Path]:
    """Writes the stream's files into `folder` and returns their paths, in the order of `files`.

    Args:
        field: the request's field that holds the files, as errors name it.

    Raises:
        InvalidArgumentError: the stream ended early, went on too long, or a file has not its declared SHA-256.
        ResourceExhaustedError: the folder's disk is full.
    """
    stream = _Stream(pieces)
    paths = []
    for index, file in enumerate(files):
        path = folder / str(index)
        await stream.write_file(file, path, f"{field}[{index}]")
        paths.append(path)
    if await stream.read(1):
        raise too_long(field)
    return paths


async def receive_file(pieces: AsyncIterator[bytes], file: File, path: Path, *, field: str) -> None:
    """Writes a stream of one file to `path`; otherwise as `receive_files`."""
    stream = _Stream(pieces)
    await stream.write_file(file, path, field)
    if await stream.read(1):
        raise too_long(field)


def ended_early(file: File, field: str, missing_bytes: int) -> InvalidArgumentError:
    """The error for a stream that ended before the end of a file."""
    return InvalidArgumentError(
        field,
        f"the upload ended {missing_bytes} bytes before the end of {shown(file.path)}; send it again",
        reason="UPLOAD_INCOMPLETE",
    )


def wrong_sha256(file: File, field: str, sha256: str) -> InvalidArgumentError:
    """The error for a file whose bytes have another SHA-256 than the declared one."""
    return InvalidArgumentError(
        f"{field}.sha256",
        f"the bytes of {shown(file.path)} have the SHA-256 {sha256}, not the declared one",
        reason="CHECKSUM_MISMATCH",
    )


def too_long(field: str) -> InvalidArgumentError:
    """The error for a stream that went on behind the last file."""
    return InvalidArgumentError(field, "more bytes came than the declared sizes add up to", reason="UPLOAD_TOO_LONG")


@contextmanager
def room_needed() -> Iterator[None]:
    """ResourceExhaustedError where a file cannot be written for want of room."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise ResourceExhaustedError(
            "the service has no room for files now", reason="SPOOL_FULL", retry_after_seconds=60.0
        ) from error


class _Stream:
    """The files' bytes, whatever messages they came in."""

    def __init__(self, pieces: AsyncIterator[bytes]) -> None:
        self._pieces = pieces
        self._buffer = b""

    async def read(self, at_most: int) -> bytes:
        """The next bytes; none at the end."""
        if not self._buffer:
            self._buffer = await anext(self._pieces, b"")
        taken, self._buffer = self._buffer[:at_most], self._buffer[at_most:]
        return taken

    async def write_file(self, file: File, path: Path, field: str) -> None:
        """Takes a file's bytes, which must be all there and have its SHA-256."""
        with room_needed():
            sha256 = await self._write(file, path, field)
        if sha256 != file.sha256:
            raise wrong_sha256(file, field, sha256)

    async def _write(self, file: File, path: Path, field: str) -> str:
        """Writes so many bytes as the file has; returns their SHA-256."""
        digest, missing = hashlib.sha256(), file.size_bytes
        with path.open("wb") as target:
            while missing:
                taken = await self.read(missing)
                if not taken:
                    raise ended_early(file, field, missing)
                target.write(taken)
                digest.update(taken)
                missing -= len(taken)
        return digest.hexdigest()


def describe_file(path: str, content: bytes | Path) -> File:
    """What is declared of a file at `path` with these bytes, or with another file's."""
    with content.open("rb") if isinstance(content, Path) else io.BytesIO(content) as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        return File(path=path, size_bytes=file.seek(0, io.SEEK_END), sha256=sha256)


def pieces_of(contents: Iterable[bytes | Path]) -> Iterator[bytes]:
    """What the data messages of an upload carry, each at most PIECE_BYTES, of contents and of files."""
    for content in contents:
        with content.open("rb") if isinstance(content, Path) else io.BytesIO(content) as file:
            while piece := file.read(PIECE_BYTES):
                yield piece
