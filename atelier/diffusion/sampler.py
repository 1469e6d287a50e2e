"""A plain batched sampling loop: prompts and seeds in, images out, for every family.

It draws with whatever adapters the caller has bound to the base's models. The same prompt, seed and settings give the
same image as the family's diffusers pipeline with CPU generators, up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from atelier.diffusion.base import Base, Words
from atelier.diffusion.conditioning import Conditioning


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
    words: Words | None = None,
    before_step: Callable[[], None] = lambda: None,
) -> torch.Tensor:
    """Draws one image for each pair of prompt and seed: uint8 [N, size, size, 3] on the CPU.

    Args:
        words: learned words that the prompts may have.
        before_step: called before every denoising step of every batch; what it raises ends the drawing.
    """
    assert len(prompts) == len(seeds), "one seed for each prompt"
    conditioning = base.encode_distinct(prompts, words)
    negative = base.encode_negative(config.negative_prompt, words)
    images = []
    for start in range(0, len(prompts), config.batch_size):
        rows = slice(start, start + config.batch_size)
        images.append(_draw(base, conditioning.rows(rows), negative, seeds[rows], config, before_step))
    return torch.cat(images)


def _draw(
    base: Base,
    conditioning: Conditioning,
    negative: Conditioning,
    seeds: Sequence[int],
    config: SamplingConfig,
    before_step: Callable[[], None],
) -> torch.Tensor:
    latents = base.denoise(
        torch.cat([initial_latents(base, seed, config.size, config.size) for seed in seeds]),
        conditioning,
        negative.rows([0] * len(seeds)),
        steps=config.steps,
        guidance_scale=config.guidance_scale,
        scheduler=config.scheduler,
        seeds=seeds,
        before_step=before_step,
    )
    return base.decode_latents(latents, conditioning, seeds)


def initial_latents(base: Base, seed: int, width: int, height: int) -> torch.Tensor:
    """The noise [1, channels, height, width] of one image, as diffusers draws it from a seed."""
    shape = (1, *base.latent_shape(width, height))
    noise = torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed), dtype=base.dtype)
    return noise.to(base.device)
