"""Reading a file that was made elsewhere: a LoRA, LoCon or DoRA of any known spelling, or a textual inversion.

What the file is its keys say, never its name. All of it is understood, or it is refused: nothing is left out silently.
Metadata is read for the scale alone; nothing of it is in the result, nor are the file's own names of anything.

What cannot be known: PEFT keeps the scale in `adapter_config.json`, so its bare `adapter_model.safetensors` is taken to
have the scale 1, as all readers of such a file take it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from dataclasses import field as dataclass_field
from math import prod
from pathlib import Path

import numpy as np

from atelier.diffusion.formats.dialects import Parts, Place, find_places, has_low_rank_part, is_flat, refuse_other_kinds
from atelier.diffusion.formats.low_rank import Shapes, Update, check_adapter, make_update
from atelier.diffusion.formats.peft_scales import PeftScales
from atelier.diffusion.formats.tensor_file import Array, TensorFile
from atelier.diffusion.formats.word_forms import SINGLE_KEY, TABLE_KEYS, check_tables
from atelier.errors import InvalidArgumentError

MAX_NUMBERS = 2**30
"""Three factors of a convolution take less room in a file than the two that they become."""
# A LoRA's own textual inversion, as A1111, ComfyUI and OneTrainer put it in the same file.
_BUNDLED = re.compile(r"bundle_emb\.(.+)\.(string_to_param\.\*|emb_params|clip_l|clip_g)")
_ALIASES = {"string_to_param.*": SINGLE_KEY}


@dataclass(frozen=True, slots=True, kw_only=True)
class Foreign:
    """What a file holds."""

    form: str
    """For people: what it is and whose keys it has."""
    updates: Mapping[str, Mapping[str, Update]] = dataclass_field(default_factory=dict)
    """By component and layer."""
    tables: Mapping[str, Array] = dataclass_field(default_factory=dict)
    """Vectors of a learned word, by `clip_l` and `clip_g`."""


def read_foreign(
    source: Path | bytes, shapes: Mapping[str, Shapes], widths: Mapping[str, int], *, max_rank: int, field: str
) -> Foreign:
    """Reads a file for a base model.

    Args:
        source: the file's path, or its whole contents.
        shapes: all of the base's layers, by component.
        widths: of the base's word embeddings, by the tables' keys.
        max_rank: the highest rank that is accepted.
        field: the request's field that errors name.

    Raises:
        InvalidArgumentError: not a safetensors file, of another kind, not made for this base, or not whole; the
            message names the tensors.
    """
    file = TensorFile(source, field=field, any_names=True)
    bundled = [key for key in file.headers if _BUNDLED.fullmatch(key)]
    keys = [key for key in file.headers if key not in set(bundled)]
    refuse_other_kinds(keys, field)
    if not any(map(has_low_rank_part, keys)) and (len(keys) == 1 or set(keys) <= set(TABLE_KEYS)):
        if bundled and keys:
            raise InvalidArgumentError(field, "has two textual inversions", reason="ADAPTER_KEY_AMBIGUOUS")
        tables = _read_tables(file, {_ALIASES.get(key, key): key for key in keys}, widths, field) if keys else {}
        return Foreign(form="textual inversion", tables=tables or _read_bundled(file, bundled, widths, field))
    updates = _read_updates(file, keys, shapes, max_rank, field)
    tables = _read_bundled(file, bundled, widths, field) if bundled else {}
    whose = "kohya" if is_flat(keys) else "diffusers"
    return Foreign(form=f"low-rank updates with the keys of {whose}", updates=updates, tables=tables)


def _read_updates(
    file: TensorFile, keys: Sequence[str], shapes: Mapping[str, Shapes], max_rank: int, field: str
) -> dict[str, dict[str, Update]]:
    scales = PeftScales(file.metadata, field)
    places = find_places(keys, shapes, field)
    if scales.are_given and any("alpha" in parts for parts in places.values()):
        raise InvalidArgumentError(
            field, "has alphas among its tensors and in its metadata too", reason="ADAPTER_SCALED"
        )
    _check_size(file, places, shapes, field)
    updates: dict[str, dict[str, Update]] = {}
    for (component, layer), parts in places.items():
        update = _read_update(file, parts, shapes[component][layer], f"{component}.{layer}", field)
        scale = scales.of(component, layer, len(update.b.T))
        scaled = Update(a=update.a, b=update.b * np.float32(scale), magnitude=update.magnitude)
        updates.setdefault(component, {})[layer] = scaled
    check_adapter(updates, shapes, max_rank=max_rank, field=field)
    return updates


def _check_size(file: TensorFile, places: Mapping[Place, Parts], shapes: Mapping[str, Shapes], field: str) -> None:
    numbers = 0
    for (component, layer), parts in places.items():
        rank, weight = file.headers[parts["down"]].shape[:1], shapes[component][layer]
        numbers += prod(rank) * (prod(weight[1:]) + weight[0])
    if numbers > MAX_NUMBERS:
        raise InvalidArgumentError(
            field, f"unfolds to {numbers} numbers; at most {MAX_NUMBERS} are allowed", reason="ADAPTER_TOO_LARGE"
        )


def _read_update(file: TensorFile, parts: Parts, weight: Sequence[int], name: str, field: str) -> Update:
    """A layer's update, its own alpha folded in."""
    tensors = {part: file[key] for part, key in parts.items()}
    a, b, magnitude = tensors["down"], tensors["up"], tensors.get("magnitude")
    if "alpha" in tensors:
        b = b * _scale(tensors["alpha"], a, name, field)
    if "mid" in tensors:
        a = _merge(a, tensors["mid"], name, field)
    if magnitude is not None:
        _check_magnitude(magnitude, parts["magnitude"], weight, name, field)
    is_conv = len(weight) == 4
    return make_update(name, _as_kernel(a, is_conv), _as_kernel(b, is_conv), magnitude, field)


def _scale(alpha: Array, a: Array, name: str, field: str) -> Array:
    if alpha.size != 1:
        raise _shape_error(f"{name} has an alpha", alpha, "one number", field)
    rank = len(a) if a.ndim else 1  # what is no matrix is refused later
    return np.asarray(alpha.reshape(()) / np.float32(rank))


def _check_magnitude(magnitude: Array, key: str, weight: Sequence[int], name: str, field: str) -> None:
    """PEFT's are [out] or [1, out, 1, 1]. LyCORIS's are [out, 1, …]; its other kind is [1, in, …]."""
    if key.endswith(".dora_scale") and magnitude.shape[:2] == (1, weight[1]):
        raise InvalidArgumentError(
            field,
            f"{name} has magnitudes of its inputs; supported are those of outputs",
            reason="ADAPTER_KIND_NOT_SUPPORTED",
        )
    if magnitude.size != weight[0]:
        raise _shape_error(f"{name} has magnitudes", magnitude, f"{weight[0]} of them, one an output", field)


def _merge(down: Array, mid: Array, name: str, field: str) -> Array:
    """LyCORIS's three factors of a convolution as two: the first is 1x1, the second has the kernel."""
    if down.ndim != 4 or down.shape[2:] != (1, 1) or mid.ndim != 4 or mid.shape[1] != len(down):
        raise _shape_error(f"{name} has a lora_mid", mid, "[rank, rank, kernel height, kernel width]", field)
    merged: Array = np.einsum("orhw,ri->oihw", mid, down[:, :, 0, 0], optimize=True)
    return np.ascontiguousarray(merged)


def _as_kernel(tensor: Array, is_conv: bool) -> Array:
    """1x1 convolutions and linear layers are the same, and files may have the one for the other."""
    if is_conv and tensor.ndim == 2:
        return tensor[:, :, None, None]
    if not is_conv and tensor.shape[2:] == (1, 1):
        return tensor[:, :, 0, 0]
    return tensor


def _read_bundled(file: TensorFile, keys: Sequence[str], widths: Mapping[str, int], field: str) -> dict[str, Array]:
    matches = [match for match in map(_BUNDLED.fullmatch, keys) if match]
    if len({match[1] for match in matches}) > 1:
        raise InvalidArgumentError(
            field,
            "has several textual inversions in one file; import them one by one",
            reason="ADAPTER_KIND_NOT_SUPPORTED",
        )
    return _read_tables(file, {_ALIASES.get(match[2], match[2]): match[0] for match in matches}, widths, field)


def _read_tables(file: TensorFile, keys: Mapping[str, str], widths: Mapping[str, int], field: str) -> dict[str, Array]:
    """The tables of the file's tensors, whose own keys are the values of `keys`.

    A single tensor may be called after its word; then it belongs to the base's only text encoder.
    """
    if len(keys) == 1 and keys.keys().isdisjoint(TABLE_KEYS) and len(widths) == 1:
        keys = dict(zip(widths, keys.values(), strict=True))
    if keys.keys() != widths.keys():
        found = ", ".join(repr(key) for key in keys.values())
        raise InvalidArgumentError(
            field,
            f"is a textual inversion with the tensors {found}; the base model needs {', '.join(widths)}",
            reason="ADAPTER_KEY_UNKNOWN",
        )
    tables = {key: np.atleast_2d(file[name]) for key, name in keys.items()}
    check_tables(tables, widths, field=field)
    return tables


def _shape_error(what: str, tensor: Array, wanted: str, field: str) -> InvalidArgumentError:
    return InvalidArgumentError(
        field, f"{what} of shape {list(tensor.shape)}; it must be {wanted}", reason="ADAPTER_SHAPE_MISMATCH"
    )
