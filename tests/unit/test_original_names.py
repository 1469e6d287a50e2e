"""Original names of UNets' layers: those that diffusers itself has for the two architectures, at their full size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.loaders.lora_conversion_utils import (
    _convert_non_diffusers_lora_to_diffusers,
    _maybe_map_sgm_blocks_to_diffusers,
)
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.utils.state_dict_utils import convert_unet_state_dict_to_peft

from atelier.diffusion.base import load_base
from atelier.diffusion.formats.original_names import original_names
from atelier.diffusion.lowrank import all_weight_shapes
from tests.harness.families import tiny_stable_diffusion, tiny_stable_diffusion_xl

SD_1: dict[str, Any] = {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8}
SDXL: dict[str, Any] = {
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}


def names_of(config: dict[str, Any]) -> tuple[UNet2DConditionModel, dict[str, str]]:
    """A UNet without memory for weights, and its layers' original names."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(**config)
    return unet, original_names(all_weight_shapes(unet))


@pytest.mark.parametrize(("config", "count"), [(SD_1, 282), (SDXL, 794)])
def test_a_checkpoint_with_these_names_becomes_diffusers_model(config: dict[str, Any], count: int) -> None:
    unet, names = names_of(config)
    assert names.keys() == all_weight_shapes(unet).keys()
    layers = list(names)
    checkpoint = {
        f"model.diffusion_model.{names[layer]}.{kind}": torch.tensor(index)
        for index, layer in enumerate(layers)
        for kind in ("weight", "bias")
    } | {f"model.diffusion_model.out.0.{kind}": torch.tensor(-1) for kind in ("weight", "bias")}
    converted = convert_ldm_unet_checkpoint(checkpoint, {**unet.config, "class_embed_type": None})
    found = {
        name.removesuffix(".weight"): layers[index]
        for name, tensor in converted.items()
        if name.endswith(".weight") and (index := int(tensor)) >= 0
    }
    assert found == {layer: layer for layer in layers}
    assert len(found) == count


def test_a_lora_with_these_names_reaches_the_same_layers_of_sdxl_in_diffusers() -> None:
    unet, names = names_of(SDXL)
    layers = list(names)
    lora = {
        f"lora_unet_{names[layer].replace('.', '_')}.lora_{part}.weight": torch.tensor(index)
        for index, layer in enumerate(layers)
        for part in ("down", "up")
    }
    mapped, _ = _convert_non_diffusers_lora_to_diffusers(_maybe_map_sgm_blocks_to_diffusers(lora, unet.config))
    found = convert_unet_state_dict_to_peft(mapped)
    assert {name: layers[int(tensor)] for name, tensor in found.items()} == {
        f"unet.{layer}.lora_{factor}.weight": layer for layer in layers for factor in "AB"
    }


@pytest.mark.parametrize("make", [tiny_stable_diffusion, tiny_stable_diffusion_xl, None])
def test_every_layer_of_the_small_models_has_one_of_its_own(make: Any, tmp_path: Path) -> None:
    path = make(tmp_path) if make else Path(__file__).parents[2] / "models" / "emoji-sd"
    base = load_base(path, device=torch.device("cpu"), dtype=torch.float32)
    layers = all_weight_shapes(base.denoiser)
    names = original_names(layers)
    assert names.keys() == layers.keys()
    assert len(set(names.values())) == len(layers)
    flat = {name.replace(".", "_") for name in names.values()}
    assert len(flat) == len(layers)
    assert flat.isdisjoint(layer.replace(".", "_") for layer in layers)
