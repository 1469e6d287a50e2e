"""The diffusion process that a base model was trained on, read from its scheduler configuration, and its loss."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler

from atelier.errors import FailedPreconditionError


def seeded_generator(seed: int, purpose: str, index: int) -> torch.Generator:
    """A CPU generator of its own for each use, so that resuming needs no saved generator state."""
    digest = hashlib.sha256(f"{seed}/{purpose}/{index}".encode()).digest()
    return torch.Generator("cpu").manual_seed(int.from_bytes(digest[:8], "big") >> 1)


class NoiseProcess:
    """Noised latents x_t = sqrt(alpha_t) x_0 + sqrt(1 - alpha_t) noise, and what a model predicts from them.

    Zero terminal SNR (Lin et al. 2024) is honoured where the configuration has `rescale_betas_zero_snr`.
    """

    def __init__(self, scheduler_config: Mapping[str, Any], device: torch.device) -> None:
        scheduler: Any = DDIMScheduler.from_config(dict(scheduler_config))
        self.prediction_type: str = scheduler.config.prediction_type
        self.num_timesteps: int = scheduler.config.num_train_timesteps
        self._alphas = scheduler.alphas_cumprod.to(device=device, dtype=torch.float32)
        if self.prediction_type not in ("epsilon", "v_prediction", "sample"):
            raise FailedPreconditionError(
                f"base_model: prediction type {self.prediction_type!r} is none of epsilon, v_prediction, sample",
                reason="BASE_MODEL_NOT_SUPPORTED",
            )

    def draw_timesteps(self, count: int, generator: torch.Generator) -> torch.Tensor:
        """[count], uniform, one from each of `count` equal strata in random order: less variance, same mean."""
        position = torch.randperm(count, generator=generator) + torch.rand(count, generator=generator)
        return (position / count * self.num_timesteps).long().clamp_(max=self.num_timesteps - 1).to(self._alphas.device)

    def add_noise(self, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """x_t of [N, ...] latents at [N] timesteps."""
        alpha = self._per_row(timesteps)
        return alpha.sqrt() * latents + (1 - alpha).sqrt() * noise

    def target(self, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """What the model is to predict, by the model's prediction type (v: Salimans & Ho 2022)."""
        alpha = self._per_row(timesteps)
        if self.prediction_type == "epsilon":
            return noise
        if self.prediction_type == "sample":
            return latents
        return alpha.sqrt() * noise - (1 - alpha).sqrt() * latents

    def loss_weights(self, timesteps: torch.Tensor, snr_gamma: float) -> torch.Tensor:
        """[N] weights of the squared errors: Min-SNR (Hang et al. 2023) for this prediction type; 1 without gamma.

        The paper weighs errors of x_0 by min(SNR, gamma). An epsilon error is SNR times, a v error SNR + 1 times
        an x_0 error, hence the divisors.
        """
        alpha = self._alphas[timesteps]
        snr = alpha / (1 - alpha)
        if snr_gamma == 0:
            return torch.ones_like(snr)
        if self.prediction_type == "epsilon":
            return (snr_gamma / snr).clamp(max=1)
        if self.prediction_type == "sample":
            return snr.clamp(max=snr_gamma)
        return snr.clamp(max=snr_gamma) / (snr + 1)

    def _per_row(self, timesteps: torch.Tensor) -> torch.Tensor:
        return self._alphas[timesteps].view(-1, 1, 1, 1)
