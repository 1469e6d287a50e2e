"""A plain batched sampling loop: prompts and seeds in, images out.

It draws with whatever adapters the caller has bound to the base's UNet. The same prompt, seed and settings give the
same image as diffusers' `StableDiffusionPipeline` with a CPU generator, up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from atelier.diffusion.base import Base, decode_latents, encode_prompts
from atelier.diffusion.schedulers import make_scheduler


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingConfig:
    """How to draw. `size` is the side of the square images in pixels; guidance of 1 and less is none."""

    size: int
    steps: int = 20
    guidance_scale: float = 4.0
    negative_prompt: str = ""
    scheduler: str = ""
    batch_size: int = 8


@torch.no_grad()
def sample(
    base: Base,
    prompts: Sequence[str],
    seeds: Sequence[int],
    config: SamplingConfig,
    *,
    before_step: Callable[[], None] = lambda: None,
) -> torch.Tensor:
    """Draws one image for each pair of prompt and seed: uint8 [N, size, size, 3] on the CPU.

    Args:
        before_step: called before every denoising step of every batch; what it raises ends the drawing.
    """
    assert len(prompts) == len(seeds), "one seed for each prompt"
    distinct = list(dict.fromkeys([config.negative_prompt, *prompts]))
    embeddings = dict(zip(distinct, encode_prompts(base, distinct), strict=True))
    images = []
    for start in range(0, len(prompts), config.batch_size):
        rows = slice(start, start + config.batch_size)
        text = torch.stack([embeddings[prompt] for prompt in prompts[rows]])
        negative = embeddings[config.negative_prompt].expand_as(text)
        latents = torch.cat([initial_latents(base, seed, config.size, config.size) for seed in seeds[rows]])
        images.append(decode_latents(base, _denoise(base, latents, text, negative, config, before_step)))
    return torch.cat(images)


def initial_latents(base: Base, seed: int, width: int, height: int) -> torch.Tensor:
    """The noise [1, channels, height / factor, width / factor] of one image, as diffusers draws it from a seed."""
    shape = (1, base.unet.config["in_channels"], height // base.size_factor, width // base.size_factor)
    noise = torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed), dtype=base.dtype)
    return noise.to(base.device)


def _denoise(
    base: Base,
    latents: torch.Tensor,
    text: torch.Tensor,
    negative: torch.Tensor,
    config: SamplingConfig,
    before_step: Callable[[], None],
) -> torch.Tensor:
    scheduler: Any = make_scheduler(config.scheduler, base.scheduler_config)
    scheduler.set_timesteps(config.steps, device=base.device)
    guided = config.guidance_scale > 1
    context = torch.cat([negative, text]) if guided else text
    latents = latents * scheduler.init_noise_sigma
    for timestep in scheduler.timesteps:
        before_step()
        scaled = scheduler.scale_model_input(latents, timestep)
        prediction = base.unet(torch.cat([scaled, scaled]) if guided else scaled, timestep, context).sample
        if guided:
            without, with_text = prediction.chunk(2)
            prediction = without + config.guidance_scale * (with_text - without)
        latents = scheduler.step(prediction, timestep, latents).prev_sample
    return latents
