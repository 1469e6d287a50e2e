"""Adapter files: `pytorch_lora_weights.safetensors` as plain diffusers with PEFT reads and writes it.

Keys are `unet.LAYER.lora_A.weight` and `unet.LAYER.lora_B.weight`. Scales are folded into the numbers, so no alpha
is stored and a reader that assumes alpha = rank (diffusers does) is right. Reading is strict: all or nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from math import prod
from pathlib import Path

import safetensors.torch
import torch

from atelier.diffusion.lowrank import Factors, LowRank, check_factors
from atelier.diffusion.safetensors_header import MAX_HEADER_BYTES, check_safetensors_header
from atelier.errors import InvalidArgumentError

FILE_NAME = "pytorch_lora_weights.safetensors"

_KEY = re.compile(r"unet\.([A-Za-z0-9_.]+)\.lora_([AB])\.weight")
# Where diffusers keeps PEFT's configuration.
_PEFT_METADATA = "lora_adapter_metadata"


def write_adapter_file(factors: Factors) -> bytes:
    """The file's contents, in float32. `factors` have their scale folded in."""
    tensors = {}
    for name, update in factors.items():
        b = update.b if update.a.ndim == 2 else update.b[:, :, None, None]
        tensors[f"unet.{name}.lora_A.weight"] = update.a.detach().float().cpu().contiguous()
        tensors[f"unet.{name}.lora_B.weight"] = b.detach().float().cpu().contiguous()
    return safetensors.torch.save(tensors, metadata={"format": "pt"})


def max_file_bytes(shapes: Mapping[str, torch.Size], *, max_rank: int) -> int:
    """The size that no file exceeds that `read_adapter_file` accepts: all layers in float32, and the largest header."""
    numbers = max_rank * sum(shape[0] + prod(shape[1:]) for shape in shapes.values())
    return 8 + MAX_HEADER_BYTES + 4 * numbers


def read_adapter_file(
    source: Path | bytes, shapes: Mapping[str, torch.Size], *, max_rank: int = 128, field: str = "adapter"
) -> dict[str, LowRank]:
    """Reads an adapter for a base model.

    Args:
        source: the file's path, or its whole contents.
        shapes: weights of the base's layers that may be adapted (`lowrank.weight_shapes`).
        max_rank: the highest rank that is accepted.
        field: the request's field that errors name.

    Returns:
        Each layer's update, in float32, as `lowrank.LowRank`.

    Raises:
        InvalidArgumentError: not a safetensors file, other keys, half a pair, a layer that the base has not got,
            a wrong shape or rank, or a value that is not finite; the message names the tensor.
    """
    contents = source if isinstance(source, bytes) else source.read_bytes()
    header = check_safetensors_header(contents, field=field)
    _require_unit_scale(header.metadata, field)
    names = _layer_names(header.tensors, field)
    tensors = safetensors.torch.load(contents)
    factors = {name: _update(tensors, name, field) for name in names}
    check_factors(factors, shapes, max_rank=max_rank, field=field)
    return factors


def _layer_names(keys: Mapping[str, object], field: str) -> list[str]:
    """The layers, in the order of the file, each with both of its factors."""
    found: dict[str, set[str]] = {}
    for key in keys:
        match = _KEY.fullmatch(key)
        if not match:
            raise InvalidArgumentError(
                field,
                f"tensor {key[:200]!r} is not named like `unet.LAYER.lora_A.weight`",
                reason="ADAPTER_KEY_UNKNOWN",
            )
        found.setdefault(match[1], set()).add(match[2])
    for name, factors in found.items():
        if factors != {"A", "B"}:
            raise InvalidArgumentError(field, f"layer {name} lacks one of its factors", reason="ADAPTER_KEY_MISSING")
    return list(found)


def _update(tensors: Mapping[str, torch.Tensor], name: str, field: str) -> LowRank:
    a, b = (tensors[f"unet.{name}.lora_{factor}.weight"].float() for factor in "AB")
    if a.ndim not in (2, 4) or a.ndim != b.ndim or b.shape[2:] not in ((), (1, 1)):
        raise InvalidArgumentError(
            field,
            f"{name} has lora_A of shape {list(a.shape)} and lora_B of {list(b.shape)}; they must be matrices, "
            "or a convolution and a 1x1 convolution",
            reason="ADAPTER_SHAPE_MISMATCH",
        )
    return LowRank(a=a, b=b.flatten(1))


def _require_unit_scale(metadata: Mapping[str, str], field: str) -> None:
    """Refuses files whose metadata asks for a scale, since reading the factors alone would be silently wrong."""
    if _PEFT_METADATA not in metadata:
        return
    try:
        config = json.loads(metadata[_PEFT_METADATA])
        plain = config["unet.lora_alpha"] == config["unet.r"]
        special = ("alpha_pattern", "rank_pattern", "use_rslora", "use_dora")
        plain = plain and not any(config.get(f"unet.{option}") for option in special)
    except (ValueError, KeyError, AttributeError, TypeError):
        plain = False
    if not plain:
        raise InvalidArgumentError(
            field, "its metadata asks for a scale; fold it in, so that lora_alpha equals r", reason="ADAPTER_SCALED"
        )
