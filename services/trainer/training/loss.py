"""What a step learns from: rows of noise at their timesteps, their targets, and the weighted error of a prediction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from atelier.diffusion.base import Base
from services.trainer.training.batches import Rows, draw_rows
from services.trainer.training.config import TrainingConfig
from services.trainer.training.examples import Example
from services.trainer.training.noise import NoiseProcess, seeded_generator
from services.trainer.training.prior import Prior
from services.trainer.training.prompts import base_prompts


@dataclass(frozen=True, slots=True, kw_only=True)
class NoisyRows:
    """Rows of one latent shape as the denoiser sees them, what it should answer, and how much each error counts."""

    latents: torch.Tensor
    timesteps: torch.Tensor
    prompts: list[str]
    sizes: torch.Tensor
    masks: torch.Tensor
    target: torch.Tensor
    weights: torch.Tensor
    """[n]; the loss is the sum of all rows' errors, so weighted."""

    def loss(self, predictions: torch.Tensor) -> torch.Tensor:
        """The sum of the rows' weighted squared errors, each a mean over what its mask leaves."""
        error = (predictions.float() - self.target).square().mean(dim=1)
        means = (error * self.masks).sum(dim=(1, 2)) / self.masks.sum(dim=(1, 2)).clamp(min=1e-6)
        return (means * self.weights).sum()


def join(parts: Sequence[NoisyRows]) -> list[NoisyRows]:
    """The parts with those of the same latent shape put together, so that each shape is one pass."""
    by_shape: dict[tuple[int, ...], list[NoisyRows]] = {}
    for part in parts:
        by_shape.setdefault(tuple(part.latents.shape[1:]), []).append(part)
    return [_join(same) for same in by_shape.values()]


def _join(parts: Sequence[NoisyRows]) -> NoisyRows:
    if len(parts) == 1:
        return parts[0]
    tensors = ("latents", "timesteps", "sizes", "masks", "target", "weights")
    joined = {name: torch.cat([getattr(part, name) for part in parts]) for name in tensors}
    return NoisyRows(prompts=[prompt for part in parts for prompt in part.prompts], **joined)


class Lessons:
    """Draws the rows of a job's batches; everything random comes from the job's seed and the batch's index."""

    def __init__(
        self, base: Base, config: TrainingConfig, process: NoiseProcess, instances: list[Example], prior: Prior | None
    ) -> None:
        self._base, self._config, self._process = base, config, process
        self._instances, self._prior = instances, prior

    def batch(self, index: int, *, with_prior: bool = True) -> list[NoisyRows]:
        """The rows of a batch, joined by shape."""
        rows = draw_rows(self._instances, self._config, index)
        parts = [self._noisy(part, "instance" if i == 0 else f"instance {i}", index) for i, part in enumerate(rows)]
        parts = [self._without_captions(part, index) for part in parts]
        if self._prior is not None and with_prior:
            parts += self._prior_rows(self._prior, index)
        return join(parts)

    def fixed(self, index: int) -> list[NoisyRows]:
        """As `batch`, of the instances alone and always the same for an index: for watching the loss settle."""
        return [self._noisy(part, "fixed", index) for part in draw_rows(self._instances, self._config, index)]

    def _noisy(self, rows: Rows, purpose: str, index: int) -> NoisyRows:
        config, process = self._config, self._process
        generator = seeded_generator(config.seed, purpose, index)
        noise = torch.randn(rows.latents.shape, generator=generator)
        timesteps = process.draw_timesteps(len(noise), generator)
        if config.noise_offset:
            noise += config.noise_offset * torch.randn(*noise.shape[:2], 1, 1, generator=generator)
        noise = noise.to(self._base.device)
        weights = process.loss_weights(timesteps, config.snr_gamma)
        return NoisyRows(
            latents=process.add_noise(rows.latents, noise, timesteps).to(self._base.dtype),
            timesteps=timesteps,
            prompts=rows.prompts,
            sizes=rows.sizes,
            masks=rows.masks,
            target=process.target(rows.latents, noise, timesteps),
            weights=weights / config.train_batch_size,
        )

    def _without_captions(self, rows: NoisyRows, index: int) -> NoisyRows:
        share = self._config.caption_dropout
        if not share:
            return rows
        chance = torch.rand(len(rows.prompts), generator=seeded_generator(self._config.seed, "captions", index))
        prompts = ["" if low else prompt for prompt, low in zip(rows.prompts, (chance < share).tolist(), strict=True)]
        return replace(rows, prompts=prompts)

    def _prior_rows(self, prior: Prior, index: int) -> list[NoisyRows]:
        """Class images, every second one with a prompt about anything, as the bare base model sees them.

        The target is the bare model's own prediction instead of the noise: zero where nothing has drifted, so that
        little of it is needed and the prompt need not fit the image.
        """
        return [self._prior_part(prior, rows, index) for rows in draw_rows(prior.examples, self._config, index)]

    def _prior_part(self, prior: Prior, rows: Rows, index: int) -> NoisyRows:
        size = len(rows.prompts)
        generator = seeded_generator(self._config.seed, "words", index)
        words = torch.randint(len(prior.word_prompts), (size,), generator=generator).tolist()
        is_word = [(i + index * size) % 2 == 0 for i in range(size)]
        prompts = [prior.word_prompts[w] if use else p for w, use, p in zip(words, is_word, rows.prompts, strict=True)]
        noisy = replace(self._noisy(rows, "class", index), prompts=prompts)
        conditioning = base_prompts(self._base).rows(prompts).with_sizes(noisy.sizes)
        with torch.no_grad():
            target = self._base.predict(noisy.latents, noisy.timesteps, conditioning).float()
        return replace(noisy, target=target, weights=noisy.weights * self._config.prior_loss_weight)
