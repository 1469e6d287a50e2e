"""How other programs spell the keys of low-rank updates.

A key is never guessed at: every spelling of every layer of the base model is put into a table, and keys are looked up
there. A key that is in no table, or stands for two layers, is refused with all others like it.

- dotted, of diffusers and PEFT: `unet.LAYER.lora_A.weight`, `….lora.down.weight`, `….lora_linear_layer.down.weight`,
  attention processors of old (`….attn1.processor.to_out_lora.down.weight`), with or without the component before or
  `base_model.model.` in between;
- flat, of kohya's sd-scripts and LyCORIS: `lora_unet_LAYER.lora_down.weight`, with diffusers' names or the
  original ones.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping

from atelier.diffusion.base_layers import name_in_files
from atelier.diffusion.formats.kohya_form import flat_key, kohya_layers
from atelier.diffusion.formats.low_rank import Shapes
from atelier.diffusion.formats.original_names import original_names
from atelier.errors import InvalidArgumentError

# Component and layer.
Place = tuple[str, str]
# What a tensor is to its layer: `down` is A and `up` is B, `mid` stands between them, `magnitude` is DoRA's.
Parts = Mapping[str, str]

_FLAT_PARTS = {
    "lora_down.weight": "down",
    "lora_up.weight": "up",
    "lora_mid.weight": "mid",
    "alpha": "alpha",
    "dora_scale": "magnitude",
}
_DOTTED_PARTS = {
    ".lora_A.weight": "down",
    ".lora_B.weight": "up",
    ".lora_A.default.weight": "down",
    ".lora_B.default.weight": "up",
    ".lora.down.weight": "down",
    ".lora.up.weight": "up",
    ".lora_linear_layer.down.weight": "down",
    ".lora_linear_layer.up.weight": "up",
    "_lora.down.weight": "down",
    "_lora.up.weight": "up",
    ".alpha": "alpha",
    ".lora_magnitude_vector": "magnitude",
    ".lora_magnitude_vector.weight": "magnitude",
    ".lora_magnitude_vector.default.weight": "magnitude",
}
_OTHER_KINDS = {
    "LoHa": re.compile(r".+\.hada_\w+"),
    "LoKr": re.compile(r".+\.lokr_\w+"),
    "GLoRA": re.compile(r".+\.[ab][12]\.weight"),
    "OFT": re.compile(r".+\.(oft|boft)_\w+(\..+)?"),
    "IA3": re.compile(r".+\.(on_input|ia3_l\.weight)"),
    "VeRA": re.compile(r".+\.vera_lambda_[bd]"),
    "LoRA of embeddings": re.compile(r".+\.lora_embedding_[AB]"),
    "LoRA with biases": re.compile(r".+\.lora_(B|up)(\.default)?\.bias"),
    "differences of whole weights": re.compile(r".+\.(diff|diff_b|w_norm|b_norm|set_weight)"),
}
_SHOWN = 5


def is_flat(keys: Iterable[str]) -> bool:
    """Whether keys are kohya's; diffusers' layers have no such names."""
    return any(key.startswith("lora_") for key in keys)


def has_low_rank_part(key: str) -> bool:
    """Whether a key is one of a low-rank update, of whatever layer."""
    return key.partition(".")[2] in _FLAT_PARTS or key.endswith(tuple(_DOTTED_PARTS))


def refuse_other_kinds(keys: Iterable[str], field: str) -> None:
    """Refuses adapters that are no low-rank updates, or more than these."""
    for kind, pattern in _OTHER_KINDS.items():
        if found := [key for key in keys if pattern.fullmatch(key)]:
            raise InvalidArgumentError(
                field,
                f"has {len(found)} tensors of {kind}, such as {found[0]!r}; supported are LoRA, LoCon, DoRA and "
                "textual inversion",
                reason="ADAPTER_KIND_NOT_SUPPORTED",
            )


def find_places(keys: Iterable[str], shapes: Mapping[str, Shapes], field: str) -> dict[Place, dict[str, str]]:
    """The key of each part of each layer that a file updates.

    Args:
        shapes: all of the base's layers, by component.

    Raises:
        InvalidArgumentError: keys that stand for no layer or for several, two keys for one tensor, or a layer that
            lacks A or B.
    """
    keys = list(keys)
    find = _flat_finder(shapes) if is_flat(keys) else _dotted_finder(shapes)
    found: dict[Place, dict[str, str]] = defaultdict(dict)
    unknown: list[str] = []
    ambiguous: list[str] = []
    for key in keys:
        places, part = find(key)
        if len(places) != 1:
            (ambiguous if places else unknown).append(key)
            continue
        parts = found[places[0]]
        if part in parts:
            raise InvalidArgumentError(
                field, f"has {parts[part]!r} and {key!r} for the same", reason="ADAPTER_KEY_AMBIGUOUS"
            )
        parts[part] = key
    if unknown:
        description = f"belong to no layer of the base model, which has {', '.join(shapes)}"
        _refuse_keys(unknown, len(keys), description, "ADAPTER_KEY_UNKNOWN", field)
    if ambiguous:
        description = "may belong to several of the base model's components; put the component before them"
        _refuse_keys(ambiguous, len(keys), description, "ADAPTER_KEY_AMBIGUOUS", field)
    for (component, layer), parts in found.items():
        if not parts.keys() >= {"down", "up"}:
            raise InvalidArgumentError(
                field, f"layer {component}.{layer} lacks one of its factors", reason="ADAPTER_KEY_MISSING"
            )
    return dict(found)


def _refuse_keys(keys: list[str], of: int, description: str, reason: str, field: str) -> None:
    shown = ", ".join(repr(key) for key in keys[:_SHOWN])
    raise InvalidArgumentError(field, f"{len(keys)} of its {of} tensors {description}: {shown}", reason=reason)


# Finds the layers that a key may stand for, and which part of theirs it is.
_Finder = Callable[[str], tuple[list[Place], str]]


def _flat_finder(shapes: Mapping[str, Shapes]) -> _Finder:
    table: dict[str, set[Place]] = defaultdict(set)
    for key, place in kohya_layers(shapes).items():
        table[key].add(place)
    for layer in shapes.get("prior", ()):
        table[flat_key("prior", layer, shapes)].add(("prior", layer))
    for layer, name in original_names(shapes.get("unet", {})).items():
        table[flat_key("unet", name, shapes)].add(("unet", layer))

    def find(key: str) -> tuple[list[Place], str]:
        stem, _, suffix = key.partition(".")
        part = _FLAT_PARTS.get(suffix, "")
        return sorted(table.get(stem, ())) if part else [], part

    return find


def _dotted_finder(shapes: Mapping[str, Shapes]) -> _Finder:
    table: dict[str, set[Place]] = defaultdict(set)
    for component, layers in shapes.items():
        for layer in layers:
            for spelling in _spellings(layer):
                table[spelling].add((component, layer))
                table[f"{component}.{spelling}"].add((component, layer))

    def find(key: str) -> tuple[list[Place], str]:
        for suffix, part in _DOTTED_PARTS.items():
            if key.endswith(suffix):
                stem = key.removesuffix(suffix).replace("base_model.model.", "", 1).replace(".processor.", ".", 1)
                return sorted(table.get(stem, ())), part
        return [], ""

    return find


def _spellings(layer: str) -> Iterator[str]:
    """A layer's names in files; attention processors called the projections otherwise."""
    for name in {layer, name_in_files(layer)}:
        yield name
        if name.endswith(".to_out.0"):
            yield name.removesuffix(".0")
        before, _, projection = name.rpartition(".self_attn.")
        if before:
            yield f"{before}.self_attn.to_{projection.removesuffix('_proj')}"
