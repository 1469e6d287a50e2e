"""Base models of published shapes with random weights, built in memory: how fast they train does not depend on weights.

The tiny ones have the same blocks at a fraction of the width and size; they show on a CPU that the bench itself works.
Every VAE is a small one of the same size factor, since training examples are drawn as latents. The tokenizer is that of
the embedded base, with a window of 77 tokens as in CLIP's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from atelier.diffusion.base import Base, TextTower, default_dtype, load_base
from atelier.diffusion.families.stable_diffusion import StableDiffusion
from atelier.diffusion.families.stable_diffusion_xl import StableDiffusionXL

EMBEDDED = Path(__file__).resolve().parent.parent / "models" / "emoji-sd"
_SCHEDULER: dict[str, Any] = {
    "_class_name": "DDIMScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Widths:
    """What a tiny shape has less of."""

    unet: tuple[int, ...]
    heads: int | tuple[int, ...]
    """What diffusers calls `attention_head_dim`: the number of heads."""
    sample_size: int
    text: tuple[int, ...]
    """Widths of the text encoders."""
    text_layers: tuple[int, ...]


_SD15 = _Widths(unet=(320, 640, 1280, 1280), heads=8, sample_size=64, text=(768,), text_layers=(12,))
_TINY_SD15 = _Widths(unet=(32, 64, 128, 128), heads=4, sample_size=16, text=(64,), text_layers=(2,))
_SDXL = _Widths(unet=(320, 640, 1280), heads=(5, 10, 20), sample_size=128, text=(768, 1280), text_layers=(12, 32))
_TINY_SDXL = _Widths(unet=(32, 64, 128), heads=(2, 4, 8), sample_size=16, text=(64, 64), text_layers=(2, 2))


def build(shape: str, device: torch.device) -> Base:
    """A frozen base model of one of SHAPES, in the device's usual number type."""
    return SHAPES[shape](device)


def _stable_diffusion(name: str, widths: _Widths, device: torch.device) -> StableDiffusion:
    with device:
        unet = UNet2DConditionModel(
            sample_size=widths.sample_size,
            block_out_channels=widths.unet,
            attention_head_dim=widths.heads,
            cross_attention_dim=widths.text[0],
        )
    return StableDiffusion(denoiser=_frozen(unet), **_rest(name, widths, device))


def _stable_diffusion_xl(name: str, widths: _Widths, device: torch.device) -> StableDiffusionXL:
    size_width = 256
    with device:
        unet = UNet2DConditionModel(
            sample_size=widths.sample_size,
            block_out_channels=widths.unet,
            attention_head_dim=widths.heads,
            cross_attention_dim=sum(widths.text),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=(1, 2, 10),
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=size_width,
            projection_class_embeddings_input_dim=6 * size_width + widths.text[-1],
        )
    return StableDiffusionXL(denoiser=_frozen(unet), zeros_for_no_negative=True, **_rest(name, widths, device))


def _rest(name: str, widths: _Widths, device: torch.device) -> dict[str, Any]:
    """What bases of both families have beside the denoiser."""
    blocks = 4
    with device:
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * blocks,
            up_block_types=("UpDecoderBlock2D",) * blocks,
            block_out_channels=(32,) * blocks,
        )
    return {
        "name": name,
        "digest": f"random weights: {name}",
        "path": Path(),
        "vae": _frozen(vae),
        "towers": tuple(_tower(i, widths, device) for i in range(len(widths.text))),
        "scheduler_config": _SCHEDULER,
        "device": device,
        "dtype": default_dtype(device),
    }


def _tower(index: int, widths: _Widths, device: torch.device) -> TextTower:
    """CLIP ViT-L's text encoder, or OpenCLIP ViT-bigG's as the second; both have heads of 64."""
    tokenizer = CLIPTokenizer.from_pretrained(EMBEDDED / "tokenizer", local_files_only=True, model_max_length=77)
    width = widths.text[index]
    config = CLIPTextConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        projection_dim=width,
        num_hidden_layers=widths.text_layers[index],
        num_attention_heads=width // 64,
        hidden_act="gelu" if index else "quick_gelu",
        eos_token_id=tokenizer.eos_token_id,
    )
    with device:
        model = (CLIPTextModelWithProjection if index else CLIPTextModel)(config)
    component, key = ("text_encoder_2", "clip_g") if index else ("text_encoder", "clip_l")
    return TextTower(component=component, embeds_key=key, tokenizer=tokenizer, model=_frozen(model))


def _frozen(model: Any) -> Any:
    device = next(model.parameters()).device
    return model.to(default_dtype(device)).eval().requires_grad_(False)


SHAPES: Mapping[str, Callable[[torch.device], Base]] = {
    "embedded": lambda device: load_base(EMBEDDED, device=device, dtype=default_dtype(device)),
    "sd15": lambda device: _stable_diffusion("sd15", _SD15, device),
    "sdxl": lambda device: _stable_diffusion_xl("sdxl", _SDXL, device),
    "tiny-sd15": lambda device: _stable_diffusion("tiny-sd15", _TINY_SD15, device),
    "tiny-sdxl": lambda device: _stable_diffusion_xl("tiny-sdxl", _TINY_SDXL, device),
}
