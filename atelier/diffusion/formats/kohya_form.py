"""Adapter files with the keys of kohya's sd-scripts, which A1111 and ComfyUI read too.

A layer's key is its component's prefix and its name with `_` for `.`: `lora_unet_mid_block_attentions_0_proj_in`. It
has `.lora_down.weight` (A), `.lora_up.weight` (B) and `.alpha`, which equals the rank, so that nobody scales anything.

- UNets keep diffusers' names of blocks, SDXL's too. ComfyUI, A1111, diffusers and sd-scripts map them to the original
  ones (`input_blocks_4_1_…`), which only sd-scripts' own files for SDXL have. A1111 alone misses one layer so: the
  upsampler of SDXL's first up block, which only the selection `all` adapts.
- Text encoders are `lora_te_`, of SDXL `lora_te1_` and `lora_te2_`, with `text_model` in every name.
- Stable Cascade has `lora_prior_unet_` and `lora_prior_te_`, with ComfyUI's names of the attention's layers. ComfyUI
  alone reads these.
- DoRA's magnitudes are `.dora_scale`, [out, 1] or [out, 1, 1, 1], in LyCORIS's convention: m (W + B A) / |W + B A|, the
  norm over each output's inputs. Not every reader follows it: A1111 takes norms over the other axis, ComfyUI (until its
  pull request 15458) divides by |W| alone, and diffusers drops these tensors with a warning. A DoRA adapter is exact
  only in diffusers' form.

Reading is strict, in this spelling alone; `foreign` knows the others.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

import numpy as np

from atelier.diffusion.base_layers import name_in_files
from atelier.diffusion.formats.low_rank import MAX_SLOT_RANK, Shapes, Update, Updates, check_adapter, make_update
from atelier.diffusion.formats.tensor_file import Array, TensorFile, encode_tensors
from atelier.errors import InvalidArgumentError

# Key prefixes by component, for each set of components that a base has.
_PREFIXES: Mapping[frozenset[str], Mapping[str, str]] = {
    frozenset(prefixes): prefixes
    for prefixes in (
        {"unet": "lora_unet_", "text_encoder": "lora_te_"},
        {"unet": "lora_unet_", "text_encoder": "lora_te1_", "text_encoder_2": "lora_te2_"},
        {"prior": "lora_prior_unet_", "text_encoder": "lora_prior_te_"},
    )
}
_NEEDED = {"lora_down.weight", "lora_up.weight", "alpha"}
_PARTS = _NEEDED | {"dora_scale"}


def write_kohya(updates: Mapping[str, Updates], components: Collection[str]) -> bytes:
    """The file's contents, in float32.

    Args:
        updates: by component.
        components: those that the base has, adapted or not: the prefixes depend on them.
    """
    return encode_tensors(kohya_tensors(updates, components))


def kohya_tensors(updates: Mapping[str, Updates], components: Collection[str]) -> dict[str, Array]:
    """The file's tensors."""
    tensors: dict[str, Array] = {}
    for component, layers in updates.items():
        for layer, update in layers.items():
            key, is_conv = kohya_key(component, layer, components), update.a.ndim == 4
            tensors[f"{key}.lora_down.weight"] = update.a
            tensors[f"{key}.lora_up.weight"] = update.b[:, :, None, None] if is_conv else update.b
            tensors[f"{key}.alpha"] = np.array(update.rank, np.float32)
            if update.magnitude is not None:
                tensors[f"{key}.dora_scale"] = update.magnitude.reshape(-1, *[1] * (update.a.ndim - 1))
    return tensors


def read_kohya(
    source: Path | bytes, shapes: Mapping[str, Shapes], *, max_rank: int = MAX_SLOT_RANK, field: str = "adapter"
) -> dict[str, dict[str, Update]]:
    """Reads a file as ComfyUI does: the names of all layers are flattened, and keys are looked up among them.

    Args:
        source: the file's path, or its whole contents.
        shapes: all of the base's linear and convolutional layers, by component.
        max_rank: the highest rank that is accepted.
        field: the request's field that errors name.

    Returns:
        By component, each layer's update, alpha folded in.

    Raises:
        InvalidArgumentError: a tensor that would not arrive, since no layer has its key, or one that is missing, has
            a wrong shape or a value that is not finite; the message names it.
    """
    file = TensorFile(source, field=field)
    layers = kohya_layers(shapes)
    updates: dict[str, dict[str, Update]] = {}
    for key, parts in _parts(file.headers, layers, field).items():
        component, layer = layers[key]
        updates.setdefault(component, {})[layer] = _update(key, {part: file[f"{key}.{part}"] for part in parts}, field)
    check_adapter(updates, shapes, max_rank=max_rank, field=field)
    return updates


def kohya_key(component: str, layer: str, components: Collection[str]) -> str:
    """The key of a layer, without the tensor's part."""
    name = name_in_files(layer)
    if component == "prior":  # in ComfyUI's stage C the projections are one module deeper
        name = re.sub(r"\.attention\.to_out\.0$", ".attention.attn.out_proj", name)
        name = re.sub(r"\.attention\.to_([qkv])$", r".attention.attn.to_\1", name)
    return flat_key(component, name, components)


def flat_key(component: str, name: str, components: Collection[str]) -> str:
    """The key of a layer that has this name."""
    return _PREFIXES[frozenset(components)][component] + name.replace(".", "_")


def kohya_layers(shapes: Mapping[str, Shapes]) -> dict[str, tuple[str, str]]:
    """Component and name of every layer, by its key."""
    names = [(component, layer) for component, layers in shapes.items() for layer in layers]
    layers = {kohya_key(component, layer, shapes): (component, layer) for component, layer in names}
    assert len(layers) == len(names), "flattened names are distinct"
    return layers


def _parts(names: Iterable[str], layers: Collection[str], field: str) -> dict[str, set[str]]:
    """The parts that each layer has, by its key."""
    parts: dict[str, set[str]] = {}
    for name in names:
        key, _, part = name.partition(".")
        if key not in layers or part not in _PARTS:
            raise InvalidArgumentError(
                field, f"tensor {name[:200]!r} belongs to no layer of the base model", reason="ADAPTER_KEY_UNKNOWN"
            )
        parts.setdefault(key, set()).add(part)
    for key, found in parts.items():
        if missing := sorted(_NEEDED - found):
            raise InvalidArgumentError(field, f"{key} lacks {', '.join(missing)}", reason="ADAPTER_KEY_MISSING")
    return parts


def _update(key: str, tensors: Mapping[str, Array], field: str) -> Update:
    a, b, alpha = tensors["lora_down.weight"], tensors["lora_up.weight"], tensors["alpha"]
    magnitude = tensors.get("dora_scale")
    if alpha.ndim or (magnitude is not None and magnitude.shape[1:] != (1,) * (a.ndim - 1)):
        shapes = ", ".join(f"{part} {list(tensor.shape)}" for part, tensor in tensors.items())
        raise InvalidArgumentError(field, f"{key} has the shapes {shapes}", reason="ADAPTER_SHAPE_MISMATCH")
    update = make_update(key, a, b, magnitude, field)
    return Update(a=a, b=update.b * (alpha / np.float32(update.rank)), magnitude=update.magnitude)
