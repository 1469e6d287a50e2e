"""Tensors of safetensors files as numpy arrays."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

from atelier.diffusion.safetensors_header import TensorHeader, check_safetensors_header

Array = NDArray[np.float32]

_NUMBERS = {"F32": "<f4", "F16": "<f2", "I64": "<i8"}


class TensorFile:
    """A file whose header was checked. Its tensors are read when they are asked for.

    Args:
        source: the file's path, or its whole contents.
        field: the request's field that errors name.
        any_names: as of `safetensors_header.HeaderReader`.

    Raises:
        InvalidArgumentError: not a safetensors file.
    """

    def __init__(self, source: Path | bytes, *, field: str = "file", any_names: bool = False) -> None:
        header = check_safetensors_header(source, field=field, any_names=any_names)
        self.headers: Mapping[str, TensorHeader] = header.tensors
        self.metadata: Mapping[str, str] = header.metadata
        contents = np.frombuffer(source, np.uint8) if isinstance(source, bytes) else np.memmap(source, np.uint8, "r")
        self._data = contents[8 + int.from_bytes(contents[:8].tobytes(), "little") :]

    def __getitem__(self, name: str) -> Array:
        """A tensor in float32, as an array of its own."""
        header = self.headers[name]
        content = self._data[header.begin : header.end]
        if header.dtype == "BF16":  # the upper half of a float32
            numbers = (content.view("<u2").astype(np.uint32) << 16).view(np.float32)
        else:
            numbers = content.view(_NUMBERS[header.dtype]).astype(np.float32)
        return np.asarray(numbers).reshape(header.shape)


def encode_tensors(tensors: Mapping[str, Array]) -> bytes:
    """The contents of a safetensors file with these tensors."""
    return safetensors.numpy.save(_contiguous(tensors), metadata={"format": "pt"})


def save_tensors(tensors: Mapping[str, Array], path: Path) -> None:
    """Writes the same to a file, without another copy of the numbers in memory. OSError when the disk is full."""
    try:
        safetensors.numpy.save_file(_contiguous(tensors), path, metadata={"format": "pt"})
    except safetensors.SafetensorError as error:
        if f"(os error {errno.ENOSPC})" in str(error):  # it tells no other way
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
        raise


def _contiguous(tensors: Mapping[str, Array]) -> dict[str, Array]:
    # Not ascontiguousarray, which makes scalars vectors.
    return {name: np.asarray(tensor, dtype=np.float32, order="C") for name, tensor in tensors.items()}
