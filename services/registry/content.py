"""What a version's files may be: safetensors, JSON, text and PNG; their bytes decide, not their names.

Nothing is ever unpickled, decompressed or decoded into pixels here, and nothing is written to a disk: a file is checked
piece by piece while it arrives, in flat memory. It passes when it has the structure of its kind from the first byte to
the last, is no zip archive beside, and all its numbers are finite. Refused is also what libraries and cameras note of
the author: metadata of tensors other than diffusers' own, the text, time and camera chunks of PNG, and JSON in which a
value or key is an absolute path. What an author writes as text, and what a picture shows, is not judged.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import PurePosixPath
from typing import Any, NoReturn, Protocol

from atelier.diffusion.safetensors_header import PICKLE_STARTS, SafetensorsHeader
from atelier.errors import InvalidArgumentError
from atelier.json_paths import find_absolute_path
from atelier.pb.common.v1.common_pb2 import File
from atelier.rpc.names import shown
from services.registry.archives import ArchiveWatch
from services.registry.png import PngReader
from services.registry.tensors import TensorReader

MAX_TEXT_BYTES = 4 * 1024 * 1024
MAX_IMAGE_BYTES = 64 * 1024 * 1024
PICKLE_SUFFIXES = frozenset(
    {".bin", ".ckpt", ".dill", ".joblib", ".npy", ".npz", ".p", ".pickle", ".pk", ".pkl", ".pt", ".pt2", ".pth", ".zip"}
)


class _Reader(Protocol):
    """What a file's kind asks of its bytes."""

    def feed(self, piece: bytes | memoryview) -> None:
        """Takes the next bytes; raises InvalidArgumentError as soon as they are known to be wrong."""

    def finish(self) -> SafetensorsHeader | None:
        """Checks that the file is whole."""


class ContentCheck:
    """The check of one file that arrives: `update` for each piece, cut anywhere, then `finish`.

    Raises:
        InvalidArgumentError: by either method, as soon as the bytes are known not to be of the kind that the name says.
    """

    def __init__(self, reader: _Reader, field: str) -> None:
        self._reader = reader
        self._archives = ArchiveWatch(field)

    def update(self, piece: bytes | memoryview) -> None:
        """Checks the file's next bytes."""
        self._reader.feed(piece)
        self._archives.update(piece)

    def finish(self) -> SafetensorsHeader | None:
        """Checks that the file is whole, and answers the header of one of tensors, None for another."""
        header = self._reader.finish()
        self._archives.finish()
        return header


def check_kind(file: File, field: str) -> None:
    """Refuses a declared file whose kind is not allowed, or that is too large for its kind."""
    suffix = PurePosixPath(file.path).suffix
    if suffix.lower() in PICKLE_SUFFIXES:
        description = f"{shown(file.path)} is of a kind that can hold pickles; weights are accepted as safetensors only"
        raise InvalidArgumentError(f"{field}.path", description, reason="PICKLE_REFUSED")
    if suffix not in _READERS:
        description = f"{shown(file.path)} is of an unknown kind; allowed are {', '.join(_READERS)}"
        raise InvalidArgumentError(f"{field}.path", description, reason="FILE_KIND_REFUSED")
    limit = _MAX_BYTES.get(suffix)
    if limit is not None and file.size_bytes > limit:
        description = f"is {file.size_bytes}; a {suffix} file may have at most {limit} bytes"
        raise InvalidArgumentError(f"{field}.size_bytes", description)


def open_check(file: File, field: str) -> ContentCheck:
    """The check of a declared file, which `check_kind` has let pass; errors name `field`."""
    return ContentCheck(_READERS[PurePosixPath(file.path).suffix](file.size_bytes, field), field)


class _WholeText:
    """A file of text, kept until it is whole: its kind has a limit."""

    def __init__(self, size_bytes: int, field: str) -> None:
        self._field = field
        self._content = bytearray()

    def feed(self, piece: bytes | memoryview) -> None:
        self._content += piece
        if len(self._content) > MAX_TEXT_BYTES:
            _refuse(self._field, f"has more than {MAX_TEXT_BYTES} bytes")

    def finish(self) -> SafetensorsHeader | None:
        if self._content.startswith(PICKLE_STARTS):
            _refuse(self._field, "is a pickle or zip archive", reason="PICKLE_REFUSED")
        try:
            self._check(self._content.decode("utf-8"))
        except UnicodeDecodeError:
            _refuse(self._field, "is not UTF-8 text")
        return None

    def _check(self, text: str) -> None:
        if "\0" in text:
            _refuse(self._field, "is not text: it holds a NUL character")


class _WholeJson(_WholeText):
    def _check(self, text: str) -> None:
        try:
            place = find_absolute_path(json.loads(text, parse_constant=_no_constant, object_pairs_hook=self._unique))
        except (ValueError, RecursionError):
            _refuse(self._field, "is not JSON (RFC 8259), or is nested too deeply")
        if place is not None:
            where = f"at {shown(place)}" if place else "as its only value"
            description = f"has an absolute path {where}, which may tell of its author; write it without"
            _refuse(self._field, description, reason="PERSONAL_DATA_REFUSED")

    def _unique(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs):
            _refuse(self._field, "has a JSON object with a key twice, which readers understand differently")
        return result


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _refuse(field: str, description: str, *, reason: str = "CONTENT_MISMATCH") -> NoReturn:
    raise InvalidArgumentError(field, description, reason=reason)


_READERS: Mapping[str, Callable[[int, str], _Reader]] = {
    ".safetensors": TensorReader,
    ".json": _WholeJson,
    ".md": _WholeText,
    ".txt": _WholeText,
    ".png": PngReader,
}
_MAX_BYTES: Mapping[str, int] = {
    ".json": MAX_TEXT_BYTES,
    ".md": MAX_TEXT_BYTES,
    ".txt": MAX_TEXT_BYTES,
    ".png": MAX_IMAGE_BYTES,
}
