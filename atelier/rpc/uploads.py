"""Receiving files over a client stream: declared first, then their bytes, checked as they come.

The bytes of all files follow one another in the declared order, cut into messages anywhere. What arrives is
written to a folder of the caller's, hashed on the way; a file is handed on only when its length and SHA-256
are the declared ones. Nothing is kept of a failed upload but what the caller's folder holds.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from atelier.errors import InvalidArgumentError
from atelier.pb.common.v1.common_pb2 import File
from atelier.rpc.names import shown

MAX_FILES = 1000
PIECE_BYTES = 1024 * 1024
_SHA256 = re.compile(r"[0-9a-f]{64}")
_PATH = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)*")
_MAX_PATH_CHARACTERS = 200


def check_files(files: Sequence[File], field: str, *, max_file_bytes: int) -> None:
    """Refuses declarations that no upload can fulfil: no files, unsafe or double paths, odd sizes or digests."""
    if not 1 <= len(files) <= MAX_FILES:
        raise InvalidArgumentError(field, f"holds {len(files)} files; 1 to {MAX_FILES} are allowed")
    seen: set[str] = set()
    for index, file in enumerate(files):
        where = f"{field}[{index}]"
        if len(file.path) > _MAX_PATH_CHARACTERS or not _PATH.fullmatch(file.path):
            rule = "a relative path of letters, digits, '_', '-', '.' and '/' whose parts do not start with '.'"
            raise InvalidArgumentError(f"{where}.path", f"is {shown(file.path)}; allowed is {rule}")
        if file.path in seen:
            raise InvalidArgumentError(f"{where}.path", f"{shown(file.path)} is there twice; paths are unique")
        seen.add(file.path)
        if not 0 < file.size_bytes <= max_file_bytes:
            raise InvalidArgumentError(
                f"{where}.size_bytes", f"is {file.size_bytes}; 1 to {max_file_bytes} bytes are allowed"
            )
        if not _SHA256.fullmatch(file.sha256):
            raise InvalidArgumentError(f"{where}.sha256", "must be 64 lower-case hexadecimal digits")


async def receive_files(pieces: AsyncIterator[bytes], files: Sequence[File], folder: Path, *, field: str) -> list[Path]:
    """Writes the stream's files into `folder` and returns their paths, in the order of `files`.

    Raises:
        InvalidArgumentError: the stream ended early, went on too long, or a file has not its declared SHA-256.
    """
    buffer = b""
    paths = []
    for index, file in enumerate(files):
        path = folder / str(index)
        digest, missing = hashlib.sha256(), file.size_bytes
        with path.open("wb") as target:
            while missing:
                if not buffer:
                    buffer = await anext(pieces, b"")
                if not buffer:
                    raise InvalidArgumentError(
                        f"{field}[{index}]",
                        f"the upload ended {missing} bytes before the end of {shown(file.path)}; send it again",
                        reason="UPLOAD_INCOMPLETE",
                    )
                taken, buffer = buffer[:missing], buffer[missing:]
                target.write(taken)
                digest.update(taken)
                missing -= len(taken)
        if digest.hexdigest() != file.sha256:
            raise InvalidArgumentError(
                f"{field}[{index}].sha256",
                f"the bytes of {shown(file.path)} have the SHA-256 {digest.hexdigest()}, not the declared one",
                reason="CHECKSUM_MISMATCH",
            )
        paths.append(path)
    if buffer or await anext(pieces, b""):
        raise InvalidArgumentError(field, "more bytes came than the declared sizes add up to", reason="UPLOAD_TOO_LONG")
    return paths


def pieces_of(contents: Sequence[bytes]) -> list[bytes]:
    """The data messages of an upload, each at most PIECE_BYTES."""
    return [content[i : i + PIECE_BYTES] for content in contents for i in range(0, len(content), PIECE_BYTES)]
