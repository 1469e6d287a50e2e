"""Checks a safetensors file that arrives in pieces: its header, its metadata, and that every number is finite."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atelier.diffusion.formats.diffusers_form import PEFT_METADATA
from atelier.diffusion.safetensors_header import ITEM_BYTES, HeaderReader, SafetensorsHeader, TensorHeader
from atelier.errors import InvalidArgumentError
from services.registry.peft_metadata import is_harmless

PUBLISHED_METADATA = ("format", PEFT_METADATA)
"""What diffusers and PEFT write and need. Other trainers write paths, user names and captions beside."""
_FORMATS = ("pt", "np", "flax", "mlx", "tf")
MAX_METADATA_CHARACTERS = 64 * 1024
_MAX_SHOWN = 5

# Of each number type: unsigned integers of its size, and the bits of its exponent, which are all set in what is not
# finite.
_EXPONENTS: Mapping[str, tuple[np.dtype[Any], int]] = {
    "F32": (np.dtype("<u4"), 0x7F800000),
    "F16": (np.dtype("<u2"), 0x7C00),
    "BF16": (np.dtype("<u2"), 0x7F80),
}
assert all(dtype.itemsize == ITEM_BYTES[name] for name, (dtype, _) in _EXPONENTS.items())


class TensorReader:
    """The reader of a safetensors file. It keeps the header and the bytes of one number, nothing else.

    Args:
        size_bytes: of the whole file.
        field: the request's field that errors name.
    """

    def __init__(self, size_bytes: int, field: str) -> None:
        self._reader = HeaderReader(size_bytes, field=field)
        self._field = field
        self._upcoming: list[tuple[str, TensorHeader]] = []
        """Tensors that have not arrived whole, the next one last."""
        self._position = 0
        self._begun_number = b""

    def feed(self, piece: bytes | memoryview) -> None:
        """Takes the file's next bytes."""
        was_read = self._reader.header is not None
        data = self._reader.feed(piece)
        if self._reader.header is not None and not was_read:
            self._begin_data(self._reader.header)
        while data and self._upcoming:
            data = self._feed_tensor(data)
        if data:
            _refuse(self._field, "has bytes behind its end", "SAFETENSORS_INVALID")

    def finish(self) -> SafetensorsHeader:
        """Checks that the file is whole."""
        header = self._reader.finish()
        if self._upcoming:
            _refuse(self._field, f"is cut off within tensor {self._upcoming[-1][0]!r}", "SAFETENSORS_INVALID")
        return header

    def _begin_data(self, header: SafetensorsHeader) -> None:
        _check_metadata(header.metadata, self._field)
        self._upcoming = sorted(header.tensors.items(), key=lambda item: item[1].begin, reverse=True)

    def _feed_tensor(self, data: memoryview) -> memoryview:
        """Takes what belongs to the tensor that is arriving, and returns the rest."""
        name, tensor = self._upcoming[-1]
        own, rest = data[: tensor.end - self._position], data[tensor.end - self._position :]
        self._position += len(own)
        if tensor.dtype in _EXPONENTS:
            self._check_numbers(name, tensor.dtype, own)
        if self._position == tensor.end:
            self._upcoming.pop()
        return rest

    def _check_numbers(self, name: str, dtype: str, data: memoryview) -> None:
        bits, exponent = _EXPONENTS[dtype]
        if self._begun_number:  # of which the last piece had the first bytes
            missing = bits.itemsize - len(self._begun_number)
            number, data = self._begun_number + bytes(data[:missing]), data[missing:]
            if len(number) < bits.itemsize:
                self._begun_number = number
                return
            self._require_finite(name, np.frombuffer(number, bits), exponent)
        whole = len(data) // bits.itemsize
        self._begun_number = bytes(data[whole * bits.itemsize :])
        self._require_finite(name, np.frombuffer(data, bits, count=whole), exponent)

    def _require_finite(self, name: str, numbers: NDArray[Any], exponent: int) -> None:
        if numbers.size and (numbers & numbers.dtype.type(exponent)).max() == exponent:
            _refuse(self._field, f"tensor {name!r} has values that are NaN or infinite", "WEIGHTS_NOT_FINITE")


def _check_metadata(metadata: Mapping[str, str], field: str) -> None:
    characters = sum(len(key) + len(value) for key, value in metadata.items())
    if characters > MAX_METADATA_CHARACTERS:
        description = f"has {characters} characters of metadata; at most {MAX_METADATA_CHARACTERS} are allowed"
        _refuse(field, description, "METADATA_REFUSED")
    unwanted = sorted(key for key, value in metadata.items() if not _is_harmless(key, value))
    if unwanted:
        shown = ", ".join(repr(key[:80]) for key in unwanted[:_MAX_SHOWN])
        more = f" and {len(unwanted) - _MAX_SHOWN} more" if len(unwanted) > _MAX_SHOWN else ""
        _refuse(
            field,
            f"has the metadata {shown}{more}, which may tell of its author; allowed are "
            f"{', '.join(PUBLISHED_METADATA)} with what diffusers writes there, and `atelier adapters import` strips "
            "the others",
            "METADATA_REFUSED",
        )


def _is_harmless(key: str, value: str) -> bool:
    """Whether it is what the libraries write on their own."""
    return value in _FORMATS if key == "format" else key == PEFT_METADATA and is_harmless(value)


def _refuse(field: str, description: str, reason: str) -> None:
    raise InvalidArgumentError(field, description, reason=reason)
