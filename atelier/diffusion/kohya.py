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
  only in `adapter_file`'s form.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

import safetensors.torch
import torch
from torch import nn

from atelier.diffusion.adapter_file import name_in_files
from atelier.diffusion.lowrank import Factors, LowRank, check_factors
from atelier.diffusion.safetensors_header import check_safetensors_header
from atelier.errors import InvalidArgumentError

KOHYA_FILE_NAME = "kohya_lora.safetensors"

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


def write_kohya_file(factors: Mapping[str, Factors], components: Collection[str]) -> bytes:
    """The file's contents, in float32.

    Args:
        factors: by component, their scale folded in.
        components: those that the base has, adapted or not (`Base.components()`): the prefixes depend on them.
    """
    tensors = {}
    for component, updates in factors.items():
        for layer, update in updates.items():
            key, is_conv = _key(component, layer, components), update.a.ndim == 4
            tensors[f"{key}.lora_down.weight"] = update.a
            tensors[f"{key}.lora_up.weight"] = update.b[:, :, None, None] if is_conv else update.b
            tensors[f"{key}.alpha"] = torch.tensor(update.rank)
            if update.magnitude is not None:
                tensors[f"{key}.dora_scale"] = update.magnitude.view(-1, *[1] * (update.a.ndim - 1))
    plain = {key: tensor.detach().float().cpu().contiguous() for key, tensor in tensors.items()}
    return safetensors.torch.save(plain, metadata={"format": "pt"})


def check_kohya_file(
    contents: bytes, components: Mapping[str, nn.Module], *, max_rank: int = 128, field: str = "adapter"
) -> dict[str, dict[str, LowRank]]:
    """Reads a file back as ComfyUI does: the names of all layers are flattened, and keys are looked up among them.

    Args:
        components: the base's models (`Base.components()`).
        max_rank: the highest rank that is accepted.
        field: the request's field that errors name.

    Returns:
        By component, each layer's update, in float32, alpha folded in.

    Raises:
        InvalidArgumentError: a tensor that would not arrive, since no layer has its key, or one that is missing, has
            a wrong shape or a value that is not finite; the message names it.
    """
    check_safetensors_header(contents, field=field)
    layers = _layers(components)
    parts = _parts(safetensors.torch.load(contents), layers, field)
    factors: dict[str, dict[str, LowRank]] = {}
    for key, tensors in parts.items():
        component, layer = layers[key]
        factors.setdefault(component, {})[layer] = _update(key, tensors, field)
    for component, updates in factors.items():
        shapes = {layer: components[component].get_parameter(f"{layer}.weight").shape for layer in updates}
        check_factors(updates, shapes, max_rank=max_rank, field=field)
    return factors


def _key(component: str, layer: str, components: Collection[str]) -> str:
    """The key of a layer, without the tensor's part."""
    name = name_in_files(layer)
    if component == "prior":  # in ComfyUI's stage C the projections are one module deeper
        name = re.sub(r"\.attention\.to_out\.0$", ".attention.attn.out_proj", name)
        name = re.sub(r"\.attention\.to_([qkv])$", r".attention.attn.to_\1", name)
    return _PREFIXES[frozenset(components)][component] + name.replace(".", "_")


def _layers(components: Mapping[str, nn.Module]) -> dict[str, tuple[str, str]]:
    """Component and name of every linear and convolutional layer, by its key."""
    names = [
        (component, layer)
        for component, model in components.items()
        for layer, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d)
    ]
    layers = {_key(component, layer, components): (component, layer) for component, layer in names}
    assert len(layers) == len(names), "flattened names are distinct"
    return layers


def _parts(
    tensors: Mapping[str, torch.Tensor], layers: Collection[str], field: str
) -> dict[str, dict[str, torch.Tensor]]:
    """The tensors of each layer, by its key."""
    parts: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        key, _, part = name.partition(".")
        if key not in layers or part not in _PARTS:
            raise InvalidArgumentError(
                field, f"tensor {name[:200]!r} belongs to no layer of the base model", reason="ADAPTER_KEY_UNKNOWN"
            )
        parts.setdefault(key, {})[part] = tensor.float()
    for key, found in parts.items():
        if missing := sorted(_NEEDED - found.keys()):
            raise InvalidArgumentError(field, f"{key} lacks {', '.join(missing)}", reason="ADAPTER_KEY_MISSING")
    return parts


def _update(key: str, tensors: Mapping[str, torch.Tensor], field: str) -> LowRank:
    a, b, alpha = tensors["lora_down.weight"], tensors["lora_up.weight"], tensors["alpha"]
    magnitude = tensors.get("dora_scale")
    ones = (1,) * (a.ndim - 2)
    shapes_fit = a.ndim in (2, 4) and b.ndim == a.ndim and b.shape[2:] == ones and alpha.ndim == 0
    if not shapes_fit or (magnitude is not None and magnitude.shape[1:] != (1, *ones)):
        shapes = ", ".join(f"{part} {list(tensor.shape)}" for part, tensor in tensors.items())
        raise InvalidArgumentError(field, f"{key} has the shapes {shapes}", reason="ADAPTER_SHAPE_MISMATCH")
    scale = alpha / max(1, len(a))  # check_factors refuses rank 0
    return LowRank(a=a, b=b.flatten(1) * scale, magnitude=None if magnitude is None else magnitude.flatten())
