"""What a version's files may be: safetensors, JSON, text and PNG; their bytes decide, not their names.

Nothing is ever unpickled, decompressed or decoded into pixels here. A file passes when it has the structure of its
kind from the first byte to the last; whether its numbers and pictures make sense is for those who load them.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import NoReturn

from atelier.diffusion.safetensors_header import check_safetensors_header
from atelier.errors import InvalidArgumentError
from atelier.pb.common.v1.common_pb2 import File
from atelier.rpc.names import shown

MAX_TEXT_BYTES = 4 * 1024 * 1024
MAX_IMAGE_BYTES = 64 * 1024 * 1024
PICKLE_SUFFIXES = frozenset(
    {".bin", ".ckpt", ".dill", ".joblib", ".npy", ".npz", ".p", ".pickle", ".pk", ".pkl", ".pt", ".pt2", ".pth", ".zip"}
)
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_CHUNK_OVERHEAD_BYTES = 12


def check_kind(file: File, field: str) -> None:
    """Refuses a declared file whose kind is not allowed, or that is too large for its kind."""
    suffix = PurePosixPath(file.path).suffix
    if suffix.lower() in PICKLE_SUFFIXES:
        description = f"{shown(file.path)} is of a kind that can hold pickles; weights are accepted as safetensors only"
        raise InvalidArgumentError(f"{field}.path", description, reason="PICKLE_REFUSED")
    if suffix not in _CHECKS:
        description = f"{shown(file.path)} is of an unknown kind; allowed are {', '.join(_CHECKS)}"
        raise InvalidArgumentError(f"{field}.path", description, reason="FILE_KIND_REFUSED")
    limit = _MAX_BYTES.get(suffix)
    if limit is not None and file.size_bytes > limit:
        description = f"is {file.size_bytes}; a {suffix} file may have at most {limit} bytes"
        raise InvalidArgumentError(f"{field}.size_bytes", description)


def check_content(path: Path, file: File, field: str) -> None:
    """Refuses a received file whose bytes are not of the kind that its name says. Blocks."""
    _CHECKS[PurePosixPath(file.path).suffix](path, field)


def _check_safetensors(path: Path, field: str) -> None:
    check_safetensors_header(path, field=field)


def _check_json(path: Path, field: str) -> None:
    text = _text(path, field)
    try:
        json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        _refuse(field, "is not JSON (RFC 8259)")


def _check_text(path: Path, field: str) -> None:
    if "\0" in _text(path, field):
        _refuse(field, "is not text: it holds a NUL character")


def _check_png(path: Path, field: str) -> None:
    """Walks the chunks: IHDR first, correct checksums, nothing behind IEND (https://www.w3.org/TR/png-3/#5)."""
    content = path.read_bytes()
    if not content.startswith(_PNG_SIGNATURE):
        _refuse(field, "is not a PNG image: it does not begin with the PNG signature")
    kinds: list[bytes] = []
    position = len(_PNG_SIGNATURE)
    while position < len(content) and kinds[-1:] != [b"IEND"]:
        end = position + _PNG_CHUNK_OVERHEAD_BYTES + int.from_bytes(content[position : position + 4])
        if end > len(content) or zlib.crc32(content[position + 4 : end - 4]) != int.from_bytes(content[end - 4 : end]):
            _refuse(field, "is a damaged PNG image: a chunk is cut off or has a wrong checksum")
        kinds.append(content[position + 4 : position + 8])
        position = end
    if kinds[:1] != [b"IHDR"] or kinds[-1] != b"IEND" or position != len(content):
        _refuse(field, "is a damaged PNG image: it must begin with IHDR and end with IEND")


def _text(path: Path, field: str) -> str:
    try:
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError:
        _refuse(field, "is not UTF-8 text")


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _refuse(field: str, description: str) -> NoReturn:
    raise InvalidArgumentError(field, description, reason="CONTENT_MISMATCH")


_CHECKS: Mapping[str, Callable[[Path, str], None]] = {
    ".safetensors": _check_safetensors,
    ".json": _check_json,
    ".md": _check_text,
    ".txt": _check_text,
    ".png": _check_png,
}
_MAX_BYTES: Mapping[str, int] = {
    ".json": MAX_TEXT_BYTES,
    ".md": MAX_TEXT_BYTES,
    ".txt": MAX_TEXT_BYTES,
    ".png": MAX_IMAGE_BYTES,
}
