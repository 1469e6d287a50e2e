"""Stable Diffusion XL (Podell et al. 2023): `StableDiffusionXLPipeline` folders, without a refiner."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from atelier.diffusion.base import Words, check_parts, load_part, refuse
from atelier.diffusion.conditioning import Conditioning
from atelier.diffusion.digest import model_digest
from atelier.diffusion.families.latent_diffusion import LatentDiffusion, load_tower, read_scheduler

_PARTS = {
    "unet": "UNet2DConditionModel",
    "text_encoder": "CLIPTextModel",
    "text_encoder_2": "CLIPTextModelWithProjection",
    "vae": "AutoencoderKL",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class StableDiffusionXL(LatentDiffusion):
    """Two text encoders, whose last but one hidden states are attended to side by side; sizes and crops are told too.

    The VAE stays in float32 when the rest is float16 and its configuration says that it overflows (`force_upcast`).
    """

    family = "stable-diffusion-xl"

    zeros_for_no_negative: bool
    """Whether zeros stand for an empty negative prompt, as `force_zeros_for_empty_prompt` of model_index.json."""

    @classmethod
    def load(cls, path: Path, *, device: torch.device, dtype: torch.dtype, name: str) -> Self:
        """Loads a `StableDiffusionXLPipeline` folder."""
        check_parts(path, _PARTS)
        index = json.loads((path / "model_index.json").read_text())
        return cls(
            name=name,
            digest=model_digest(path),
            path=path,
            denoiser=load_part(UNet2DConditionModel, path / "unet", device=device, dtype=dtype),
            vae=_load_vae(path, device=device, dtype=dtype),
            towers=(
                load_tower(path, CLIPTextModel, "", "clip_l", device=device, dtype=dtype),
                load_tower(path, CLIPTextModelWithProjection, "_2", "clip_g", device=device, dtype=dtype),
            ),
            scheduler_config=read_scheduler(path),
            device=device,
            dtype=dtype,
            zeros_for_no_negative=index.get("force_zeros_for_empty_prompt", True),
        )

    def predict(self, latents: torch.Tensor, timesteps: torch.Tensor, conditioning: Conditioning) -> torch.Tensor:
        """The UNet's output [N, channels, height, width]; without sizes the image was not scaled nor cropped."""
        added = {"text_embeds": conditioning.pooled, "time_ids": self._sizes(latents, conditioning)}
        output: torch.Tensor = self.unet(latents, timesteps, conditioning.text, added_cond_kwargs=added).sample
        return output

    def encode_negative(self, prompt: str, words: Words | None = None) -> Conditioning:
        """Conditioning, one row, of what guidance leads away from; for an empty prompt as the model was trained."""
        encoded = self.encode_prompts([prompt], words)
        if prompt or not self.zeros_for_no_negative:
            return encoded
        assert encoded.pooled is not None
        return Conditioning(text=torch.zeros_like(encoded.text), pooled=torch.zeros_like(encoded.pooled))

    def _encode_tokens(self, ids: Mapping[str, torch.Tensor], masks: Mapping[str, torch.Tensor]) -> Conditioning:
        first, second = (tower.model(ids[tower.component], output_hidden_states=True) for tower in self.towers)
        text = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1)
        return Conditioning(text=text, pooled=second.text_embeds)

    def _sizes(self, latents: torch.Tensor, conditioning: Conditioning) -> torch.Tensor:
        if conditioning.sizes is not None:
            return conditioning.sizes
        height, width = (side * self.size_factor for side in latents.shape[2:])
        sizes = torch.tensor([height, width, 0, 0, height, width], dtype=torch.float32, device=latents.device)
        return sizes.expand(len(latents), -1)


def _load_vae(path: Path, *, device: torch.device, dtype: torch.dtype) -> AutoencoderKL:
    config = AutoencoderKL.load_config(path / "vae", local_files_only=True)
    if config.get("latents_mean") is not None or config.get("latents_std") is not None:
        refuse(
            f"{path.name}: its vae shifts latents (latents_mean), which is not supported", "BASE_MODEL_NOT_SUPPORTED"
        )
    overflows = dtype == torch.float16 and config.get("force_upcast", True)
    return load_part(AutoencoderKL, path / "vae", device=device, dtype=torch.float32 if overflows else dtype)
