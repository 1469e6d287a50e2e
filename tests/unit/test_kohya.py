"""The keys of kohya, A1111 and ComfyUI: the names they look for, and nothing lost on the way back."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.models.unets.unet_stable_cascade import StableCascadeUNet
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from atelier.diffusion.families.stable_diffusion import StableDiffusion
from atelier.diffusion.kohya import KOHYA_FILE_NAME, check_kohya_file, write_kohya_file
from atelier.diffusion.lowrank import LowRank
from atelier.errors import InvalidArgumentError
from tests.harness.adapters import largest_difference, random_updates

_LAYER = "lora_unet_mid_block_attentions_0_proj_in"


def text_config() -> CLIPTextConfig:
    return CLIPTextConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        projection_dim=16,
        vocab_size=64,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )


@pytest.fixture(scope="module")
def sdxl() -> dict[str, nn.Module]:
    """Components in SDXL's shape: no attention in the first block, linear projections, several transformers."""
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16, 16),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2, 3),
        attention_head_dim=(1, 2, 2),
        cross_attention_dim=32,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=64,
        norm_num_groups=4,
    )
    return {
        "unet": unet.requires_grad_(False),
        "text_encoder": CLIPTextModel(text_config()),
        "text_encoder_2": CLIPTextModelWithProjection(text_config()),
    }


@pytest.fixture(scope="module")
def cascade() -> dict[str, nn.Module]:
    prior = StableCascadeUNet(
        in_channels=4,
        out_channels=4,
        timestep_ratio_embedding_dim=8,
        patch_size=1,
        conditioning_dim=16,
        block_out_channels=(16, 16),
        num_attention_heads=(2, 2),
        down_num_layers_per_block=(1, 1),
        up_num_layers_per_block=(1, 1),
        down_blocks_repeat_mappers=(1, 1),
        up_blocks_repeat_mappers=(1, 1),
        block_types_per_layer=(("SDCascadeResBlock", "SDCascadeTimestepBlock", "SDCascadeAttnBlock"),) * 2,
        clip_text_in_channels=16,
        clip_text_pooled_in_channels=16,
        clip_image_in_channels=16,
        clip_seq=2,
        switch_level=(False,),
    )
    return {"prior": prior, "text_encoder": CLIPTextModelWithProjection(text_config())}


def random_factors(components: dict[str, nn.Module], *, dora: bool = False) -> dict[str, dict[str, LowRank]]:
    return {component: random_updates(model, seed=1, rank=2, dora=dora) for component, model in components.items()}


def keys(components: dict[str, nn.Module]) -> set[str]:
    tensors = safetensors.torch.load(write_kohya_file(random_factors(components), components))
    return {name.removesuffix(".lora_down.weight") for name in tensors if name.endswith(".lora_down.weight")}


def test_keys_of_stable_diffusion(base: StableDiffusion) -> None:
    found = keys(base.components())
    assert found >= {
        "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q",
        "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_out_0",
        "lora_unet_mid_block_attentions_0_transformer_blocks_0_ff_net_0_proj",
        "lora_unet_up_blocks_0_resnets_1_conv_shortcut",
        "lora_unet_mid_block_resnets_0_time_emb_proj",
        "lora_unet_down_blocks_0_downsamplers_0_conv",
        "lora_te_text_model_encoder_layers_3_self_attn_out_proj",
        "lora_te_text_model_encoder_layers_0_mlp_fc1",
    }
    assert len(found) == 128 + 24


def test_keys_of_sdxl(sdxl: dict[str, nn.Module]) -> None:
    assert keys(sdxl) >= {
        "lora_unet_down_blocks_2_attentions_1_transformer_blocks_2_attn2_to_k",
        "lora_unet_down_blocks_1_attentions_0_proj_in",
        "lora_te1_text_model_encoder_layers_1_self_attn_q_proj",
        "lora_te2_text_model_encoder_layers_1_self_attn_q_proj",
    }


def test_keys_of_stable_cascade(cascade: dict[str, nn.Module]) -> None:
    found = keys(cascade)
    assert found >= {
        "lora_prior_unet_down_blocks_0_2_attention_attn_to_q",
        "lora_prior_unet_down_blocks_0_2_attention_attn_to_v",
        "lora_prior_unet_up_blocks_1_2_attention_attn_out_proj",
        "lora_prior_unet_up_blocks_0_0_channelwise_4",
        "lora_prior_unet_down_blocks_1_2_kv_mapper_1",
        "lora_prior_te_text_model_encoder_layers_0_self_attn_k_proj",
    }
    assert not any("to_out" in key for key in found)


@pytest.mark.parametrize("family", ["base", "sdxl", "cascade"])
@pytest.mark.parametrize("dora", [False, True])
def test_everything_comes_back(family: str, dora: bool, request: pytest.FixtureRequest) -> None:
    fixture = request.getfixturevalue(family)
    components = fixture.components() if family == "base" else fixture
    factors = random_factors(components, dora=dora)
    read = check_kohya_file(write_kohya_file(factors, components), components)
    assert read.keys() == factors.keys()
    for component, updates in factors.items():
        assert read[component].keys() == updates.keys()
        assert all(largest_difference(read[component][name], updates[name]) == 0 for name in updates)


def test_magnitudes_have_an_axis_for_each_of_the_weight_s(base: StableDiffusion) -> None:
    factors = random_factors({"unet": base.unet}, dora=True)
    tensors = safetensors.torch.load(write_kohya_file(factors, base.components()))
    for name, weight in base.unet.named_parameters():
        scale = tensors.get(f"lora_unet_{name.removesuffix('.weight').replace('.', '_')}.dora_scale")
        if scale is not None and name.endswith(".weight"):
            assert scale.shape == (weight.shape[0], *[1] * (weight.ndim - 1))


def test_alpha_is_a_scale(base: StableDiffusion) -> None:
    factors = random_factors({"unet": base.unet})
    tensors = safetensors.torch.load(write_kohya_file(factors, base.components()))
    assert all(tensor == 2 for name, tensor in tensors.items() if name.endswith(".alpha"))
    tensors[f"{_LAYER}.alpha"] = torch.tensor(1.0)
    read = check_kohya_file(safetensors.torch.save(tensors), base.components())["unet"]
    name = "mid_block.attentions.0.proj_in"
    torch.testing.assert_close(read[name].b, factors["unet"][name].b / 2)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda t: t.update({"lora_unet_nowhere.alpha": torch.ones(())}), "ADAPTER_KEY_UNKNOWN"),
        (lambda t: t.update({f"{_LAYER}.lora_mid.weight": torch.ones(1)}), "ADAPTER_KEY_UNKNOWN"),
        (lambda t: t.update({_LAYER.replace("unet", "te"): torch.ones(1)}), "ADAPTER_KEY_UNKNOWN"),
        (lambda t: t.pop(f"{_LAYER}.lora_up.weight"), "ADAPTER_KEY_MISSING"),
        (lambda t: t.pop(f"{_LAYER}.alpha"), "ADAPTER_KEY_MISSING"),
        (lambda t: t.update({f"{_LAYER}.alpha": torch.ones(1)}), "ADAPTER_SHAPE_MISMATCH"),
        (lambda t: t.update({f"{_LAYER}.dora_scale": torch.ones(1, 192)}), "ADAPTER_SHAPE_MISMATCH"),
        (lambda t: t.update({f"{_LAYER}.lora_up.weight": torch.ones(7, 2, 1, 1)}), "ADAPTER_SHAPE_MISMATCH"),
        (lambda t: t[f"{_LAYER}.alpha"].fill_(torch.nan), "ADAPTER_NOT_FINITE"),
    ],
)
def test_what_would_not_arrive_whole_is_refused(
    base: StableDiffusion, change: Callable[[dict[str, torch.Tensor]], object], reason: str
) -> None:
    tensors = safetensors.torch.load(write_kohya_file(random_factors({"unet": base.unet}), base.components()))
    change(tensors)
    with pytest.raises(InvalidArgumentError) as caught:
        check_kohya_file(safetensors.torch.save(tensors), base.components())
    assert caught.value.reason == reason


def test_diffusers_maps_every_key_of_sdxl(sdxl: dict[str, nn.Module], tmp_path: Path) -> None:
    factors = random_factors(sdxl)
    (tmp_path / KOHYA_FILE_NAME).write_bytes(write_kohya_file(factors, sdxl))
    others = {"vae": None, "tokenizer": None, "tokenizer_2": None, "scheduler": EulerDiscreteScheduler()}
    parts: dict[str, Any] = {**copy.deepcopy(sdxl), **others}
    pipeline: Any = StableDiffusionXLPipeline(**parts)
    pipeline.load_lora_weights(tmp_path, weight_name=KOHYA_FILE_NAME, use_safetensors=True)
    for component, updates in factors.items():
        own = dict(getattr(pipeline, component).named_parameters())
        assert sum("lora_" in name for name in own) == 2 * len(updates)
        for name, update in updates.items():
            assert torch.equal(own[f"{name}.lora_A.default_0.weight"], update.a)
            assert torch.equal(own[f"{name}.lora_B.default_0.weight"].flatten(1), update.b)
