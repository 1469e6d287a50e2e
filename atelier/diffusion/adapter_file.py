"""Adapter files as tensors: `formats.diffusers_form`, which says what they hold, with torch."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from pathlib import Path

import torch

from atelier.diffusion.base_layers import name_in_files
from atelier.diffusion.formats.diffusers_form import FILE_NAME, read_diffusers, write_diffusers
from atelier.diffusion.formats.low_rank import MAX_SLOT_RANK
from atelier.diffusion.lowrank import Factors, LowRank, from_arrays, to_arrays
from atelier.diffusion.safetensors_header import MAX_HEADER_BYTES

__all__ = ["FILE_NAME", "max_file_bytes", "name_in_files", "read_adapter_file", "write_adapter_file"]


def write_adapter_file(factors: Mapping[str, Factors]) -> bytes:
    """The file's contents, in float32. `factors`, by component, have their scale folded in."""
    return write_diffusers({component: to_arrays(updates) for component, updates in factors.items()})


def max_file_bytes(shapes: Mapping[str, torch.Size], *, max_rank: int) -> int:
    """The size that no file exceeds that `read_adapter_file` accepts for one component with these weights.

    That is all layers in float32, with magnitudes, and the largest header.
    """
    numbers = sum(max_rank * (shape[0] + prod(shape[1:])) + shape[0] for shape in shapes.values())
    return 8 + MAX_HEADER_BYTES + 4 * numbers


def read_adapter_file(
    source: Path | bytes,
    shapes: Mapping[str, Mapping[str, torch.Size]],
    *,
    max_rank: int = MAX_SLOT_RANK,
    field: str = "adapter",
) -> dict[str, dict[str, LowRank]]:
    """Reads an adapter for a base model, as `formats.diffusers_form.read_diffusers` does.

    Args:
        shapes: by component, weights of the base's layers that may be adapted (`lowrank.weight_shapes`).

    Returns:
        By component, each layer's update, in float32, as `lowrank.LowRank`.
    """
    read = read_diffusers(source, shapes, max_rank=max_rank, field=field)
    return {component: from_arrays(updates) for component, updates in read.items()}
