"""The diffusion process that a base model was trained on, read from its scheduler configuration, and its loss.

`NoiseProcess` has discrete timesteps, as Stable Diffusion and SDXL; `CosineNoise` continuous ones, as Stable Cascade.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from typing import Any

import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler

from atelier.diffusion.base import Base
from atelier.errors import FailedPreconditionError


def seeded_generator(seed: int, purpose: str, index: int) -> torch.Generator:
    """A CPU generator of its own for each use, so that resuming needs no saved generator state."""
    digest = hashlib.sha256(f"{seed}/{purpose}/{index}".encode()).digest()
    return torch.Generator("cpu").manual_seed(int.from_bytes(digest[:8], "big") >> 1)


class NoiseProcess:
    """Noised latents x_t = sqrt(alpha_t) x_0 + sqrt(1 - alpha_t) noise, and what a model predicts from them.

    Zero terminal SNR (Lin et al. 2024) is honoured where the configuration has `rescale_betas_zero_snr`. Timesteps are
    from 0 to `num_timesteps`.
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
        drawn = _stratified(count, generator) * self.num_timesteps
        return drawn.long().clamp_(max=self.num_timesteps - 1).to(self._alphas.device)

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
        alpha = self._alpha(timesteps)
        snr = alpha / (1 - alpha)
        if snr_gamma == 0:
            return torch.ones_like(snr)
        if self.prediction_type == "epsilon":
            return (snr_gamma / snr).clamp(max=1)
        if self.prediction_type == "sample":
            return snr.clamp(max=snr_gamma)
        return snr.clamp(max=snr_gamma) / (snr + 1)

    def _alpha(self, timesteps: torch.Tensor) -> torch.Tensor:
        return self._alphas[timesteps]

    def _per_row(self, timesteps: torch.Tensor) -> torch.Tensor:
        return self._alpha(timesteps).view(-1, 1, 1, 1)


class CosineNoise(NoiseProcess):
    """Stable Cascade's: timesteps from 0 to 1, alpha_t by a cosine (Nichol & Dhariwal 2021), and noise predicted.

    alpha_t = cos²((t + s) / (1 + s) · π/2) / cos²(s / (1 + s) · π/2), within 0.0001 and 0.9999. With a `scaler` other
    than 1 in the configuration t is bent first, as `DDPMWuerstchenScheduler` does it.
    """

    def __init__(self, scheduler_config: Mapping[str, Any], device: torch.device) -> None:
        self.prediction_type = "epsilon"
        self.num_timesteps = 1
        self._s: float = scheduler_config.get("s", 0.008)
        self._scaler: float = scheduler_config.get("scaler", 1.0)
        self._device = device

    def draw_timesteps(self, count: int, generator: torch.Generator) -> torch.Tensor:
        """[count] float32, uniform, one from each of `count` equal strata in random order."""
        return _stratified(count, generator).to(self._device)

    def _alpha(self, timesteps: torch.Tensor) -> torch.Tensor:
        t = 1 - (1 - timesteps) ** self._scaler if self._scaler > 1 else timesteps**self._scaler
        at_zero = math.cos(self._s / (1 + self._s) * math.pi / 2) ** 2
        alpha = torch.cos((t + self._s) / (1 + self._s) * math.pi / 2) ** 2 / at_zero
        return alpha.clamp(0.0001, 0.9999)


def noise_process(base: Base) -> NoiseProcess:
    """The process that a base model was trained on."""
    kind = CosineNoise if base.scheduler_config["_class_name"] == "DDPMWuerstchenScheduler" else NoiseProcess
    return kind(base.scheduler_config, base.device)


def _stratified(count: int, generator: torch.Generator) -> torch.Tensor:
    return (torch.randperm(count, generator=generator) + torch.rand(count, generator=generator)) / count
