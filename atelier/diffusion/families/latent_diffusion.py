"""What Stable Diffusion and SDXL have in common: a VAE, a UNet, and a noise schedule of discrete timesteps."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from transformers import CLIPTokenizer

from atelier.diffusion.base import Base, TextTower, load_part, pixel_chunk
from atelier.diffusion.conditioning import Conditioning
from atelier.diffusion.schedulers import make_scheduler, scheduler_names


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentDiffusion(Base):
    """A base with an `AutoencoderKL` and a `UNet2DConditionModel`."""

    vae: AutoencoderKL

    @property
    def unet(self) -> Any:
        """The denoiser."""
        return self.denoiser

    @property
    def size_factor(self) -> int:
        """One latent covers so many pixels a side."""
        return 2 ** (len(self.vae.config["block_out_channels"]) - 1)

    @property
    def default_size(self) -> int:
        """The side of the images that the model was trained on, in pixels."""
        size: int = self.unet.config["sample_size"] * self.size_factor
        return size

    def latent_shape(self, width: int, height: int) -> tuple[int, int, int]:
        """Channels, height and width of the latents of an image of so many pixels."""
        return self.unet.config["in_channels"], height // self.size_factor, width // self.size_factor

    @torch.no_grad()
    def encode_images(self, images: torch.Tensor) -> torch.Tensor:
        """The most likely latents of the VAE's distribution, not a draw from it, so they can be cached."""
        pixels = images.permute(0, 3, 1, 2).to(device=self.device, dtype=self.vae.dtype) / 127.5 - 1
        chunks = pixels.split(pixel_chunk(*pixels.shape[2:]))
        latents = torch.cat([self.vae.encode(chunk).latent_dist.mode() for chunk in chunks])
        return (latents * self.vae.config["scaling_factor"]).to(self.dtype)

    @torch.no_grad()
    def decode_latents(
        self, latents: torch.Tensor, conditioning: Conditioning | None = None, seeds: Sequence[int] = ()
    ) -> torch.Tensor:
        """Images on the CPU, of latents as `encode_images` gives them; nothing else plays a part.

        Never in mixed precision: a VAE that is kept in float32 overflows in float16.
        """
        latents = latents.to(self.vae.dtype) / self.vae.config["scaling_factor"]
        height, width = (side * self.size_factor for side in latents.shape[2:])
        chunks = latents.split(pixel_chunk(width, height))
        with torch.autocast(self.device.type, enabled=False):
            pixels = torch.cat([self.vae.decode(chunk).sample for chunk in chunks]).float()
        pixels = (pixels / 2 + 0.5).clamp(0, 1)
        return (pixels * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu()

    @torch.no_grad()
    def denoise(
        self,
        latents: torch.Tensor,
        conditioning: Conditioning,
        negative: Conditioning,
        *,
        steps: int,
        guidance_scale: float,
        scheduler: str,
        seeds: Sequence[int],
        before_step: Callable[[], None],
    ) -> torch.Tensor:
        """As diffusers' pipelines do it."""
        process: Any = make_scheduler(scheduler, self.scheduler_config)
        process.set_timesteps(steps, device=self.device)
        guided = guidance_scale > 1
        context = Conditioning.cat([negative, conditioning]) if guided else conditioning
        latents = latents * process.init_noise_sigma
        for timestep in process.timesteps:
            before_step()
            scaled = process.scale_model_input(latents, timestep)
            prediction = self.predict(torch.cat([scaled, scaled]) if guided else scaled, timestep, context)
            if guided:
                without, with_text = prediction.chunk(2)
                prediction = without + guidance_scale * (with_text - without)
            latents = process.step(prediction, timestep, latents).prev_sample
        return latents


def read_scheduler(path: Path) -> dict[str, Any]:
    """The folder's scheduler configuration; raises InvalidArgumentError when it is not supported."""
    config: dict[str, Any] = json.loads((path / "scheduler" / "scheduler_config.json").read_text())
    scheduler_names(config)
    return config


def load_tower(
    path: Path, model_class: Any, suffix: str, embeds_key: str, *, device: torch.device, dtype: torch.dtype
) -> TextTower:
    """The text encoder and tokenizer whose folders end with `suffix`: nothing, or `_2`."""
    component = f"text_encoder{suffix}"
    return TextTower(
        component=component,
        embeds_key=embeds_key,
        tokenizer=CLIPTokenizer.from_pretrained(path / f"tokenizer{suffix}", local_files_only=True),
        model=load_part(model_class, path / component, device=device, dtype=dtype),
    )
