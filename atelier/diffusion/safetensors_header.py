"""Checks a safetensors file's header before anything reads its tensors. Needs no torch.

It holds that the file is exactly what its header says: known number types, no overlap, no gap, nothing behind the
end, no key twice, and names that are harmless as names of anything. It is stricter than the safetensors library, which
takes duplicate keys, leading space, empty tensors by the hundred thousand and names such as `../../etc/x`. It does not
look at the numbers themselves.
Format: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, NoReturn

from atelier.errors import InvalidArgumentError

MAX_HEADER_BYTES = 4 * 2**20
MAX_FILE_BYTES = 64 * 2**30
MAX_TENSORS = 20_000
MAX_DIMENSIONS = 8
# Whole models count in I64: position ids, batches that a norm has seen.
ITEM_BYTES: Mapping[str, int] = {"F32": 4, "F16": 2, "BF16": 2, "I64": 8}
PICKLE_STARTS = (b"PK\x03\x04", b"PK\x05\x06", b"\x80\x01", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")

_LENGTH_BYTES = 8
_NAME = re.compile(r"(?!.*\.\.)[A-Za-z0-9_-][A-Za-z0-9_.-]{0,255}")
_NAME_RULE = "at most 256 letters, digits, `_`, `.` and `-`, no dot first and no two in a row"
# Other programs name a textual inversion's tensor after its word, such as `<fox>`.
_ANY_NAME = re.compile(r"[^\x00-\x1f\x7f\ud800-\udfff]{1,256}")
_METADATA = "__metadata__"


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


class HeaderReader:
    """Reads and checks the header of a file that arrives in pieces, cut anywhere.

    Args:
        size_bytes: of the whole file.
        field: the request's field that errors name.
        any_names: take every printable name; for files whose tensors are stored under others.

    Raises:
        InvalidArgumentError: by any method, as soon as something is known to be wrong; nothing of the file's contents
            but names is quoted.
    """

    def __init__(self, size_bytes: int, *, field: str, any_names: bool = False) -> None:
        if size_bytes > MAX_FILE_BYTES:
            _refuse(field, f"is too large: it has {size_bytes} bytes; at most {MAX_FILE_BYTES} are allowed")
        self.header: SafetensorsHeader | None = None
        """The header, once it is there whole."""
        self._size_bytes = size_bytes
        self._field = field
        self._names = _ANY_NAME if any_names else _NAME
        self._start = bytearray()
        self._wanted_bytes = _LENGTH_BYTES + 1

    def feed(self, piece: bytes | memoryview) -> memoryview:
        """Takes the file's next bytes and returns those of them that lie behind the header."""
        rest = memoryview(piece)
        while self.header is None and rest:
            missing = self._wanted_bytes - len(self._start)
            self._start += rest[:missing]
            rest = rest[missing:]
            if len(self._start) == self._wanted_bytes:
                self._advance()
        return rest

    def finish(self) -> SafetensorsHeader:
        """The header of a file that has arrived."""
        if self.header is None:
            if self._start.startswith(PICKLE_STARTS):
                _refuse_pickle(self._field)
            _refuse(self._field, "is not a safetensors file, or is cut off")
        return self.header

    def _advance(self) -> None:
        length = int.from_bytes(self._start[:_LENGTH_BYTES], "little")
        if self._wanted_bytes == _LENGTH_BYTES + 1:
            self._check_length(length)
            self._wanted_bytes = _LENGTH_BYTES + length
            return
        text, data_bytes = bytes(self._start[_LENGTH_BYTES:]), self._size_bytes - self._wanted_bytes
        self.header = _parse(text, data_bytes, self._names, self._field)
        self._start.clear()

    def _check_length(self, length: int) -> None:
        """Of the header, of which the first byte is there."""
        # Only here, since a header of 640 bytes begins like a pickle too.
        is_impossible = length > min(MAX_HEADER_BYTES, self._size_bytes - _LENGTH_BYTES) or self._start[-1:] != b"{"
        if is_impossible and self._start.startswith(PICKLE_STARTS):
            _refuse_pickle(self._field)
        if MAX_HEADER_BYTES < length <= self._size_bytes - _LENGTH_BYTES:
            _refuse(self._field, f"has a header of {length} bytes; at most {MAX_HEADER_BYTES} are allowed")
        if not 2 <= length <= self._size_bytes - _LENGTH_BYTES:
            _refuse(self._field, "is not a safetensors file, or is cut off")
        if self._start[-1:] != b"{":
            _refuse(self._field, "has a header that does not begin with {")


def check_safetensors_header(
    source: Path | bytes, *, field: str = "file", any_names: bool = False
) -> SafetensorsHeader:
    """Reads and checks the header.

    Args:
        source: the file's path, or its whole contents.
        field: the request's field that errors name.
        any_names: as of HeaderReader.

    Raises:
        InvalidArgumentError: what is wrong; nothing of the file's contents but names is quoted.
    """
    if isinstance(source, bytes):
        reader = HeaderReader(len(source), field=field, any_names=any_names)
        reader.feed(memoryview(source)[: _LENGTH_BYTES + MAX_HEADER_BYTES])
        return reader.finish()
    reader = HeaderReader(source.stat().st_size, field=field, any_names=any_names)
    with source.open("rb") as file:
        while reader.header is None and (piece := file.read(2**16)):
            reader.feed(piece)
    return reader.finish()


def _parse(text: bytes, data_bytes: int, names: re.Pattern[str], field: str) -> SafetensorsHeader:
    entries = _parse_json(text, field)
    metadata = _metadata(entries.pop(_METADATA, {}), field)
    if not 1 <= len(entries) <= MAX_TENSORS:
        _refuse(field, f"has {len(entries)} tensors; allowed are 1 to {MAX_TENSORS}")
    for name in entries:
        if not names.fullmatch(name):
            _refuse(field, f"has a tensor named {name[:200]!r}; allowed are {_NAME_RULE}")
    tensors = {name: _tensor(name, entry, field) for name, entry in entries.items()}
    _check_layout(tensors, data_bytes, field)
    return SafetensorsHeader(tensors, metadata)


def _parse_json(text: bytes, field: str) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs):
            _refuse(field, "names a key twice in its header")
        return result

    try:
        # The format pads with spaces, and with nothing else.
        header = json.loads(text.rstrip(b" ").decode("utf-8"), object_pairs_hook=unique, parse_int=_size)
    except (ValueError, RecursionError):
        _refuse(field, "has a header that is not JSON")
    if not isinstance(header, dict) or not text.rstrip(b" ").endswith(b"}"):
        _refuse(field, "has a header that is not a JSON object, padded with spaces")
    return header


def _size(digits: str) -> int:
    """A header's numbers all are sizes; JSON knows `-0`."""
    if digits.startswith("-"):
        raise ValueError("a size is not negative")
    return int(digits)


def _metadata(value: Any, field: str) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        _refuse(field, "has metadata that is not text")
    for text in (*value.keys(), *value.values()):
        if "\0" in text or not _is_unicode(text):
            _refuse(field, "has metadata that is not text")
    return value


def _is_unicode(text: str) -> bool:
    """Whether there is no half of a surrogate pair in it, which JSON can write and nobody can encode."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _tensor(name: str, entry: Any, field: str) -> TensorHeader:
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        _refuse(field, f"tensor {name!r} needs exactly dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        _refuse(field, f"tensor {name!r} has a number type other than {', '.join(ITEM_BYTES)}")
    if not _are_sizes(shape) or not _are_sizes(offsets) or len(offsets) != 2 or len(shape) > MAX_DIMENSIONS:
        _refuse(field, f"tensor {name!r} has a malformed shape or place")
    if 0 in shape:
        _refuse(field, f"tensor {name!r} is empty")
    if offsets[1] - offsets[0] != prod(shape) * ITEM_BYTES[dtype]:
        _refuse(field, f"tensor {name!r} has a place that does not fit its shape")
    return TensorHeader(dtype, tuple(shape), *offsets)


def _are_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and item <= MAX_FILE_BYTES for item in value)


def _check_layout(tensors: Mapping[str, TensorHeader], data_bytes: int, field: str) -> None:
    position = 0
    for name, tensor in sorted(tensors.items(), key=lambda item: item[1].begin):
        if tensor.begin != position:
            _refuse(field, f"tensor {name!r} overlaps another or leaves a gap")
        position = tensor.end
    if position != data_bytes:
        _refuse(field, f"has {data_bytes} bytes of data where its header says {position}")


def _refuse_pickle(field: str) -> NoReturn:
    _refuse(field, "is a pickle or zip archive; only safetensors is accepted", reason="PICKLE_REFUSED")


def _refuse(field: str, description: str, *, reason: str = "SAFETENSORS_INVALID") -> NoReturn:
    raise InvalidArgumentError(field, description, reason=reason)
