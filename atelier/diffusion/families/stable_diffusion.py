"""Stable Diffusion 1.x and 2.x: `StableDiffusionPipeline` folders, with epsilon or v-prediction."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

from atelier.diffusion.base import check_parts, load_part
from atelier.diffusion.conditioning import Conditioning
from atelier.diffusion.digest import model_digest
from atelier.diffusion.families.latent_diffusion import LatentDiffusion, load_tower, read_scheduler


@dataclass(frozen=True, slots=True, kw_only=True)
class StableDiffusion(LatentDiffusion):
    """One `CLIPTextModel`, whose last hidden state is what the UNet attends to."""

    family = "stable-diffusion"

    @classmethod
    def load(cls, path: Path, *, device: torch.device, dtype: torch.dtype, name: str) -> Self:
        """Loads a `StableDiffusionPipeline` folder."""
        check_parts(path, {"unet": "UNet2DConditionModel", "text_encoder": "CLIPTextModel", "vae": "AutoencoderKL"})
        return cls(
            name=name,
            digest=model_digest(path),
            path=path,
            denoiser=load_part(UNet2DConditionModel, path / "unet", device=device, dtype=dtype),
            vae=load_part(AutoencoderKL, path / "vae", device=device, dtype=dtype),
            towers=(load_tower(path, CLIPTextModel, "", "clip_l", device=device, dtype=dtype),),
            scheduler_config=read_scheduler(path),
            device=device,
            dtype=dtype,
        )

    @property
    def text_encoder(self) -> Any:
        """The only tower's model."""
        return self.towers[0].model

    @property
    def tokenizer(self) -> CLIPTokenizer:
        """The only tower's tokenizer."""
        return self.towers[0].tokenizer

    def predict(self, latents: torch.Tensor, timesteps: torch.Tensor, conditioning: Conditioning) -> torch.Tensor:
        """The UNet's output [N, channels, height, width]."""
        output: torch.Tensor = self.unet(latents, timesteps, conditioning.text).sample
        return output

    @property
    def _pipeline_options(self) -> dict[str, Any]:
        return {"safety_checker": None, "requires_safety_checker": False}

    def _encode_tokens(self, ids: Mapping[str, torch.Tensor], masks: Mapping[str, torch.Tensor]) -> Conditioning:
        return Conditioning(text=self.text_encoder(ids["text_encoder"]).last_hidden_state)
