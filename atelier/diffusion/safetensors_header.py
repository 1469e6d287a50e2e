"""Checks a safetensors file's header before anything reads its tensors. Needs no torch.

It holds that the file is exactly what its header says: known number types, no overlap, no gap, nothing behind the
end. It does not look at the numbers themselves.
Format: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, NoReturn

from atelier.errors import InvalidArgumentError

MAX_HEADER_BYTES = 4 * 2**20
MAX_FILE_BYTES = 64 * 2**30
MAX_TENSORS = 20_000
# Whole models count in I64: position ids, batches that a norm has seen.
ITEM_BYTES: Mapping[str, int] = {"F32": 4, "F16": 2, "BF16": 2, "I64": 8}

_PICKLE_STARTS = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


@dataclass(frozen=True, slots=True)
class TensorHeader:
    """One tensor: its number type (a key of ITEM_BYTES), shape, and place in the data part."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class SafetensorsHeader:
    """The tensors by name, and the file's free-form metadata."""

    tensors: Mapping[str, TensorHeader]
    metadata: Mapping[str, str]


def check_safetensors_header(source: Path | bytes, *, field: str = "file") -> SafetensorsHeader:
    """Reads and checks the header.

    Args:
        source: the file's path, or its whole contents.
        field: the request's field that errors name.

    Raises:
        InvalidArgumentError: what is wrong; nothing of the file's contents but tensor names is quoted.
    """
    start, size = _read_start(source)
    if start.startswith(_PICKLE_STARTS):
        _refuse(field, "is a pickle or zip archive; only safetensors is accepted", reason="PICKLE_REFUSED")
    length = int.from_bytes(start[:8], "little")
    if size < 10 or not 2 <= length <= size - 8:
        _refuse(field, "is not a safetensors file, or is cut off")
    if length > MAX_HEADER_BYTES or size > MAX_FILE_BYTES:
        _refuse(field, f"is too large: at most {MAX_HEADER_BYTES} header bytes and {MAX_FILE_BYTES} bytes in all")
    entries = _parse(start[8 : 8 + length], field)
    metadata = _metadata(entries.pop("__metadata__", {}), field)
    if not 1 <= len(entries) <= MAX_TENSORS:
        _refuse(field, f"has {len(entries)} tensors; allowed are 1 to {MAX_TENSORS}")
    tensors = {name: _tensor(name, entry, field) for name, entry in entries.items()}
    _check_layout(tensors, size - 8 - length, field)
    return SafetensorsHeader(tensors, metadata)


def _read_start(source: Path | bytes) -> tuple[bytes, int]:
    """As much as can be header, and the size of the whole."""
    if isinstance(source, bytes):
        return source[: 8 + MAX_HEADER_BYTES], len(source)
    with source.open("rb") as file:
        return file.read(8 + MAX_HEADER_BYTES), source.stat().st_size


def _parse(text: bytes, field: str) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs):
            _refuse(field, "names a key twice in its header")
        return result

    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=unique)
    except (ValueError, RecursionError):
        _refuse(field, "has a header that is not JSON")
    if not isinstance(header, dict):
        _refuse(field, "has a header that is not a JSON object")
    return header


def _metadata(value: Any, field: str) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        _refuse(field, "has metadata that is not text")
    return value


def _tensor(name: str, entry: Any, field: str) -> TensorHeader:
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        _refuse(field, f"tensor {name[:200]!r} needs exactly dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        _refuse(field, f"tensor {name[:200]!r} has a number type other than {', '.join(ITEM_BYTES)}")
    if not _are_sizes(shape) or not _are_sizes(offsets) or len(offsets) != 2 or len(shape) > 8:
        _refuse(field, f"tensor {name[:200]!r} has a malformed shape or place")
    if offsets[1] - offsets[0] != prod(shape) * ITEM_BYTES[dtype]:
        _refuse(field, f"tensor {name[:200]!r} has a place that does not fit its shape")
    return TensorHeader(dtype, tuple(shape), *offsets)


def _are_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item <= MAX_FILE_BYTES for item in value)


def _check_layout(tensors: Mapping[str, TensorHeader], data_bytes: int, field: str) -> None:
    position = 0
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end)):
        if tensor.begin != position:
            _refuse(field, f"tensor {name[:200]!r} overlaps another or leaves a gap")
        position = tensor.end
    if position != data_bytes:
        _refuse(field, f"has {data_bytes} bytes of data where its header says {position}")


def _refuse(field: str, description: str, *, reason: str = "SAFETENSORS_INVALID") -> NoReturn:
    raise InvalidArgumentError(field, description, reason=reason)
