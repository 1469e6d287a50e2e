"""Adapter files: `pytorch_lora_weights.safetensors` as plain diffusers with PEFT reads and writes it.

Keys are `COMPONENT.LAYER.lora_A.weight` and `….lora_B.weight`, where a component is `unet` (`prior` for Stable Cascade)
or a text encoder. Scales are folded into the numbers, so no alpha is stored and a reader that assumes alpha = rank
(diffusers does) is right. Reading is strict: all or nothing.

Layers that learnt magnitudes (DoRA) have `….lora_magnitude_vector.weight` too. PEFT itself writes no `.weight` there,
which reading accepts, but transformers 5 loads no magnitudes into text encoders without it. A component has magnitudes
in every layer or in none, since PEFT would make up the missing ones.

Text encoders' layers are `text_model.encoder.…` in files, as transformers before 5.6 names them: ComfyUI and older
diffusers know no other name, and newer diffusers takes the prefix off where its model has none. Reading accepts both.
"""

from __future__ import annotations

import json
import re
from collections.abc import Container, Mapping
from math import prod
from pathlib import Path

import safetensors.torch
import torch

from atelier.diffusion.lowrank import Factors, LowRank, check_factors
from atelier.diffusion.safetensors_header import MAX_HEADER_BYTES, check_safetensors_header
from atelier.errors import InvalidArgumentError

FILE_NAME = "pytorch_lora_weights.safetensors"

_KEY = re.compile(r"([a-z0-9_]+)\.([A-Za-z0-9_.]+)\.(lora_A\.weight|lora_B\.weight|lora_magnitude_vector(\.weight)?)")
_PAIR = {"lora_A.weight", "lora_B.weight"}
_WRAPPER = "text_model."
# Where diffusers keeps PEFT's configuration.
_PEFT_METADATA = "lora_adapter_metadata"


def write_adapter_file(factors: Mapping[str, Factors]) -> bytes:
    """The file's contents, in float32. `factors`, by component, have their scale folded in."""
    tensors = {}
    for component, updates in factors.items():
        for name, update in updates.items():
            key = f"{component}.{name_in_files(name)}"
            tensors[f"{key}.lora_A.weight"] = update.a
            tensors[f"{key}.lora_B.weight"] = update.b if update.a.ndim == 2 else update.b[:, :, None, None]
            if update.magnitude is not None:
                flat = update.magnitude if update.a.ndim == 2 else update.magnitude.view(1, -1, 1, 1)
                tensors[f"{key}.lora_magnitude_vector.weight"] = flat
    plain = {key: tensor.detach().float().cpu().contiguous() for key, tensor in tensors.items()}
    return safetensors.torch.save(plain, metadata={"format": "pt"})


def name_in_files(layer: str) -> str:
    """A layer's name as all readers of adapters know it; it differs for text encoders without `text_model` alone."""
    return _WRAPPER + layer if layer.startswith("encoder.layers.") else layer


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
    max_rank: int = 128,
    field: str = "adapter",
) -> dict[str, dict[str, LowRank]]:
    """Reads an adapter for a base model.

    Args:
        source: the file's path, or its whole contents.
        shapes: by component, weights of the base's layers that may be adapted (`lowrank.weight_shapes`).
        max_rank: the highest rank that is accepted.
        field: the request's field that errors name.

    Returns:
        By component, each layer's update, in float32, as `lowrank.LowRank`.

    Raises:
        InvalidArgumentError: not a safetensors file, other keys, half a pair, a layer that the base has not got,
            a wrong shape or rank, or a value that is not finite; the message names the tensor.
    """
    contents = source if isinstance(source, bytes) else source.read_bytes()
    header = check_safetensors_header(contents, field=field)
    _require_unit_scale(header.metadata, field)
    layers = _layers(header.tensors, field)
    tensors = safetensors.torch.load(contents)
    factors: dict[str, dict[str, LowRank]] = {}
    for component, name in layers:
        if component not in shapes:
            known = ", ".join(shapes)
            raise InvalidArgumentError(
                field, f"adapts {component}; accepted are {known}", reason="ADAPTER_COMPONENT_UNKNOWN"
            )
        updates, own_name = factors.setdefault(component, {}), _name_in_model(name, shapes[component])
        if own_name in updates:
            raise InvalidArgumentError(field, f"has layer {own_name} under two names", reason="ADAPTER_KEY_UNKNOWN")
        updates[own_name] = _update(tensors, f"{component}.{name}", field)
    for component, updates in factors.items():
        check_factors(updates, shapes[component], max_rank=max_rank, field=field)
        _require_all_or_no_magnitudes(updates, component, field)
    return factors


def _name_in_model(name: str, layers: Container[str]) -> str:
    bare = name.removeprefix(_WRAPPER)
    return bare if name not in layers and bare in layers else name


def _layers(keys: Mapping[str, object], field: str) -> list[tuple[str, str]]:
    """Component and name of the layers, in the order of the file, each with both of its factors."""
    found: dict[tuple[str, str], set[str]] = {}
    for key in keys:
        match = _KEY.fullmatch(key)
        if not match:
            raise InvalidArgumentError(
                field,
                f"tensor {key[:200]!r} is not named like `unet.LAYER.lora_A.weight`",
                reason="ADAPTER_KEY_UNKNOWN",
            )
        found.setdefault((match[1], match[2]), set()).add(match[3])
    for (_, name), parts in found.items():
        if not parts >= _PAIR:
            raise InvalidArgumentError(field, f"layer {name} lacks one of its factors", reason="ADAPTER_KEY_MISSING")
        if len(parts) > 3:
            raise InvalidArgumentError(field, f"layer {name} has two magnitudes", reason="ADAPTER_KEY_UNKNOWN")
    return list(found)


def _update(tensors: Mapping[str, torch.Tensor], name: str, field: str) -> LowRank:
    a, b = (tensors[f"{name}.lora_{factor}.weight"].float() for factor in "AB")
    if a.ndim not in (2, 4) or a.ndim != b.ndim or b.shape[2:] not in ((), (1, 1)):
        raise InvalidArgumentError(
            field,
            f"{name} has lora_A of shape {list(a.shape)} and lora_B of {list(b.shape)}; they must be matrices, "
            "or a convolution and a 1x1 convolution",
            reason="ADAPTER_SHAPE_MISMATCH",
        )
    key = f"{name}.lora_magnitude_vector"
    magnitude = tensors.get(f"{key}.weight", tensors.get(key))
    return LowRank(a=a, b=b.flatten(1), magnitude=None if magnitude is None else magnitude.float().flatten())


def _require_all_or_no_magnitudes(updates: Factors, component: str, field: str) -> None:
    without = [name for name, update in updates.items() if update.magnitude is None]
    if 0 < len(without) < len(updates):
        raise InvalidArgumentError(
            field,
            f"{len(without)} of the {len(updates)} layers of its {component} lack magnitudes (DoRA): {without[0]}",
            reason="ADAPTER_KEY_MISSING",
        )


def _require_unit_scale(metadata: Mapping[str, str], field: str) -> None:
    """Refuses files whose metadata asks for a scale, since reading the factors alone would be silently wrong."""
    if _PEFT_METADATA not in metadata:
        return
    try:
        config = json.loads(metadata[_PEFT_METADATA])
        components = {key.removesuffix(".r") for key in config if key.endswith(".r")}
        special = ("alpha_pattern", "rank_pattern", "use_rslora")
        plain = bool(components) and all(
            config[f"{each}.lora_alpha"] == config[f"{each}.r"]
            and not any(config.get(f"{each}.{option}") for option in special)
            for each in components
        )
    except (ValueError, KeyError, AttributeError, TypeError):
        plain = False
    if not plain:
        raise InvalidArgumentError(
            field, "its metadata asks for a scale; fold it in, so that lora_alpha equals r", reason="ADAPTER_SCALED"
        )
