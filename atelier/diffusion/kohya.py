"""Adapter files with kohya's keys as tensors: `formats.kohya_form`, which says what they hold, with torch."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from torch import nn

from atelier.diffusion.formats.kohya_form import read_kohya, write_kohya
from atelier.diffusion.formats.low_rank import MAX_SLOT_RANK
from atelier.diffusion.lowrank import Factors, LowRank, all_weight_shapes, from_arrays, to_arrays

KOHYA_FILE_NAME = "kohya_lora.safetensors"


def write_kohya_file(factors: Mapping[str, Factors], components: Collection[str]) -> bytes:
    """The file's contents, in float32.

    Args:
        factors: by component, their scale folded in.
        components: those that the base has, adapted or not (`Base.components()`): the prefixes depend on them.
    """
    return write_kohya({component: to_arrays(updates) for component, updates in factors.items()}, components)


def check_kohya_file(
    contents: bytes, components: Mapping[str, nn.Module], *, max_rank: int = MAX_SLOT_RANK, field: str = "adapter"
) -> dict[str, dict[str, LowRank]]:
    """Reads a file back as ComfyUI does, as `formats.kohya_form.read_kohya`.

    Args:
        components: the base's models (`Base.components()`).

    Returns:
        By component, each layer's update, in float32, alpha folded in.
    """
    shapes = {component: all_weight_shapes(model) for component, model in components.items()}
    read = read_kohya(contents, shapes, max_rank=max_rank, field=field)
    return {component: from_arrays(updates) for component, updates in read.items()}
