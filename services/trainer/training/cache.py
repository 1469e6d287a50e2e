"""Tensors that later jobs may want again: in memory, and where there is one, in a store that workers share."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Protocol

import safetensors.torch
import torch
from safetensors import SafetensorError

from atelier.errors import AtelierError
from atelier.storage.blobs import BlobStore

_KEY = "tensor"


class TensorStore(Protocol):
    """Keeps tensors by the digest of what they were made from."""

    def get(self, key: str) -> torch.Tensor | None:
        """The key's tensor on the CPU, if it is there."""
        ...

    def put(self, key: str, tensor: torch.Tensor) -> None:
        """Keeps a tensor."""
        ...


class TensorCache:
    """Holds tensors on the CPU, up to `max_bytes` of them; the least recently used goes first."""

    def __init__(self, *, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._tensors: OrderedDict[Hashable, torch.Tensor] = OrderedDict()

    def get(self, key: Hashable) -> torch.Tensor | None:
        """The key's tensor, if it is still there."""
        if key in self._tensors:
            self._tensors.move_to_end(key)
        return self._tensors.get(key)

    def put(self, key: Hashable, tensor: torch.Tensor) -> None:
        """Keeps a tensor, unless there is one with this key, or it is larger than the whole cache."""
        if key in self._tensors or tensor.nbytes > self._max_bytes:
            return
        self._tensors[key] = tensor.cpu()
        self._bytes += tensor.nbytes
        while self._bytes > self._max_bytes:
            _, dropped = self._tensors.popitem(last=False)
            self._bytes -= dropped.nbytes


class SharedTensors:
    """Tensors in S3, behind a `TensorCache`. They can be made again, so a store that is away is no error."""

    def __init__(self, blobs: BlobStore, folder: str, *, max_bytes: int) -> None:
        self._blobs, self._folder = blobs, folder
        self._memory = TensorCache(max_bytes=max_bytes)

    def get(self, key: str) -> torch.Tensor | None:
        """From memory, else from S3; None when it is in neither or S3 is away."""
        found = self._memory.get(key)
        if found is None:
            try:
                found = safetensors.torch.load(self._blobs.get(self._path(key)))[_KEY]
            except (AtelierError, SafetensorError, KeyError):  # also what was cut off or is something else
                return None
            self._memory.put(key, found)
        return found

    def put(self, key: str, tensor: torch.Tensor) -> None:
        """In memory, and in S3 if it is there."""
        self._memory.put(key, tensor)
        try:
            self._blobs.put(self._path(key), safetensors.torch.save({_KEY: tensor.contiguous()}))
        except AtelierError:
            return

    def _path(self, key: str) -> str:
        return f"{self._folder}/{key}.safetensors"
