"""What a denoiser is told about its rows: text, and what some families have besides."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditioning:
    """What a denoiser is told about N rows."""

    text: torch.Tensor
    """[N, tokens, width], for cross-attention."""
    pooled: torch.Tensor | None = None
    """[N, width], of the families that have it."""
    sizes: torch.Tensor | None = None
    """[N, 6], SDXL's original height and width, crop top and left, target height and width; None: not cropped."""

    def rows(self, indices: Any) -> Conditioning:
        """Some rows, in the order of `indices`: a slice, a list or a tensor."""
        return self._map(lambda tensor: tensor[indices])

    def to(self, device: torch.device) -> Conditioning:
        """The same on another device."""
        return self._map(lambda tensor: tensor.to(device))

    @property
    def nbytes(self) -> int:
        """Memory of all rows."""
        return sum(tensor.nbytes for tensor in (self.text, self.pooled, self.sizes) if tensor is not None)

    def with_sizes(self, sizes: torch.Tensor) -> Conditioning:
        """The same with these size conditions [N, 6]."""
        return replace(self, sizes=sizes)

    def _map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Conditioning:
        def each(tensor: torch.Tensor | None) -> torch.Tensor | None:
            return None if tensor is None else change(tensor)

        return Conditioning(text=change(self.text), pooled=each(self.pooled), sizes=each(self.sizes))

    @staticmethod
    def cat(parts: Sequence[Conditioning]) -> Conditioning:
        """The rows of all parts, which have the same fields, one after the other."""

        def each(tensors: Sequence[torch.Tensor | None]) -> torch.Tensor | None:
            present = [tensor for tensor in tensors if tensor is not None]
            assert len(present) in (0, len(tensors)), "all parts have a field, or none has"
            return torch.cat(present) if present else None

        return Conditioning(
            text=torch.cat([part.text for part in parts]),
            pooled=each([part.pooled for part in parts]),
            sizes=each([part.sizes for part in parts]),
        )
