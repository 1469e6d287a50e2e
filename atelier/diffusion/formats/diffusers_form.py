"""`pytorch_lora_weights.safetensors` as plain diffusers with PEFT reads and writes it: the form that is stored.

Keys are `COMPONENT.LAYER.lora_A.weight` and `….lora_B.weight`, where a component is `unet` (`prior` for Stable Cascade)
or a text encoder. Scales are folded into the numbers, so no alpha is stored and a reader that assumes alpha = rank
(diffusers does) is right. Reading is strict: all or nothing, and in this spelling alone; `foreign` knows the others.

Layers that learnt magnitudes (DoRA) have `….lora_magnitude_vector.weight` too. PEFT itself writes no `.weight` there,
which reading accepts, but transformers 5 loads no magnitudes into text encoders without it. A component has magnitudes
in every layer or in none, since PEFT would make up the missing ones.

Text encoders' layers are `text_model.encoder.…` in files, as transformers before 5.6 names them: ComfyUI and older
diffusers know no other name, and newer diffusers takes the prefix off where its model has none. Reading accepts both.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from atelier.diffusion.base_layers import name_in_files, name_in_model
from atelier.diffusion.formats.low_rank import MAX_SLOT_RANK, Shapes, Update, Updates, check_adapter, make_update
from atelier.diffusion.formats.tensor_file import Array, TensorFile, encode_tensors
from atelier.errors import InvalidArgumentError

FILE_NAME = "pytorch_lora_weights.safetensors"
# Where diffusers keeps PEFT's configuration.
PEFT_METADATA = "lora_adapter_metadata"

_KEY = re.compile(r"([a-z0-9_]+)\.([A-Za-z0-9_.]+)\.(lora_A\.weight|lora_B\.weight|lora_magnitude_vector(\.weight)?)")
_PAIR = {"lora_A.weight", "lora_B.weight"}


def write_diffusers(updates: Mapping[str, Updates]) -> bytes:
    """The file's contents, in float32, of updates by component."""
    return encode_tensors(diffusers_tensors(updates))


def diffusers_tensors(updates: Mapping[str, Updates]) -> dict[str, Array]:
    """The file's tensors."""
    tensors: dict[str, Array] = {}
    for component, layers in updates.items():
        for layer, update in layers.items():
            key, is_conv = f"{component}.{name_in_files(layer)}", update.a.ndim == 4
            tensors[f"{key}.lora_A.weight"] = update.a
            tensors[f"{key}.lora_B.weight"] = update.b[:, :, None, None] if is_conv else update.b
            if update.magnitude is not None:
                magnitude = update.magnitude.reshape(1, -1, 1, 1) if is_conv else update.magnitude
                tensors[f"{key}.lora_magnitude_vector.weight"] = magnitude
    return tensors


def read_diffusers(
    source: Path | bytes, shapes: Mapping[str, Shapes], *, max_rank: int = MAX_SLOT_RANK, field: str = "adapter"
) -> dict[str, dict[str, Update]]:
    """Reads an adapter for a base model.

    Args:
        source: the file's path, or its whole contents.
        shapes: the base's layers that may be adapted, by component.
        max_rank: the highest rank that is accepted.
        field: the request's field that errors name.

    Raises:
        InvalidArgumentError: not a safetensors file, other keys, half a pair, a layer that the base has not got,
            a wrong shape or rank, or a value that is not finite; the message names the tensor.
    """
    file = TensorFile(source, field=field)
    require_unit_scale(file.metadata, field)
    updates: dict[str, dict[str, Update]] = {}
    for component, name in adapter_layers(file.headers, field):
        if component not in shapes:
            known = ", ".join(shapes)
            raise InvalidArgumentError(
                field, f"adapts {component}; accepted are {known}", reason="ADAPTER_COMPONENT_UNKNOWN"
            )
        layers, layer = updates.setdefault(component, {}), name_in_model(name, shapes[component])
        if layer in layers:
            raise InvalidArgumentError(field, f"has layer {layer} under two names", reason="ADAPTER_KEY_UNKNOWN")
        layers[layer] = _update(file, f"{component}.{name}", field)
    check_adapter(updates, shapes, max_rank=max_rank, field=field)
    return updates


def adapter_layers(keys: Iterable[str], field: str) -> list[tuple[str, str]]:
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


def _update(file: TensorFile, name: str, field: str) -> Update:
    spellings = (f"{name}.lora_magnitude_vector", f"{name}.lora_magnitude_vector.weight")
    magnitude = next((file[key] for key in spellings if key in file.headers), None)
    return make_update(name, file[f"{name}.lora_A.weight"], file[f"{name}.lora_B.weight"], magnitude, field)


def require_unit_scale(metadata: Mapping[str, str], field: str) -> None:
    """Refuses files whose metadata asks for a scale, since reading the factors alone would be silently wrong."""
    if PEFT_METADATA not in metadata:
        return
    try:
        config = json.loads(metadata[PEFT_METADATA])
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
