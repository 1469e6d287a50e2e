"""Tensors that later jobs may want again."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable

import torch


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
