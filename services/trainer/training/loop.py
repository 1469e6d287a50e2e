"""The training loop: one optimizer step after the other on a job's slot.

Everything random in a step is drawn from generators seeded by (job seed, step), so a loop that is resumed from its
state goes on exactly as if it had never stopped.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch.nn.utils import clip_grad_norm_

from atelier.diffusion.base import Base
from atelier.diffusion.slots import TrainingSlots
from atelier.errors import FailedPreconditionError
from services.trainer.methods.base import StepDone
from services.trainer.training.config import TrainingConfig
from services.trainer.training.data import Examples, Prior, epoch_order
from services.trainer.training.noise import NoiseProcess, seeded_generator

_LOSS_SMOOTHING = 0.95


@dataclass(frozen=True, slots=True)
class NoisyRows:
    """Rows of a batch as the UNet sees them, what it should answer, and how much each row's error counts."""

    latents: torch.Tensor
    timesteps: torch.Tensor
    text: torch.Tensor
    target: torch.Tensor
    weights: torch.Tensor


class TrainingLoop:
    """A job in training: its slot, its optimizer, and how far it is.

    `step` and `smoothed_loss`, the slot's parameters and the optimizer's moments are the whole state.
    """

    def __init__(self, base: Base, config: TrainingConfig, instances: Examples, prior: Prior | None) -> None:
        self.base, self.config = base, config
        self.instances, self.prior = instances, prior
        self.process = NoiseProcess(base.scheduler_config, base.device)
        self.slots = TrainingSlots(
            base.unet,
            layers=config.lora_layers,
            rank=config.rank,
            scale=config.lora_alpha / config.rank,
            seeds=[config.seed],
        )
        self.parameters = self.slots.parameters(0)
        self.optimizer = torch.optim.AdamW(
            self.parameters.values(), lr=config.learning_rate, weight_decay=config.adam_weight_decay, fused=True
        )
        self.step = 0
        self.smoothed_loss = 0.0

    def run(self) -> Iterator[StepDone]:
        """Trains from `step` to the end.

        Raises:
            FailedPreconditionError: the loss is not finite; the parameters are those before that step.
        """
        start, first = time.perf_counter(), self.step
        while self.step < self.config.max_train_steps:
            self._take_step()
            seconds_per_step = (time.perf_counter() - start) / (self.step - first)
            yield StepDone(
                step=self.step,
                total_steps=self.config.max_train_steps,
                loss=self.smoothed_loss,
                images_per_second=self.config.train_batch_size / seconds_per_step,
                eta_seconds=seconds_per_step * (self.config.max_train_steps - self.step),
            )

    def _take_step(self) -> None:
        loss = self._loss()
        loss.backward()
        norm = clip_grad_norm_(self.parameters.values(), self.config.max_grad_norm)
        value = loss.item()
        if not math.isfinite(value) or not torch.isfinite(norm):
            raise FailedPreconditionError(
                f"training diverged at step {self.step + 1}: the loss or its gradient is not finite; "
                "try a lower learning_rate",
                reason="TRAINING_DIVERGED",
                metadata={"step": str(self.step + 1)},
            )
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.config, self.step)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        smoothing = _LOSS_SMOOTHING if self.step else 0.0
        self.smoothed_loss = smoothing * self.smoothed_loss + (1 - smoothing) * value
        self.step += 1

    def _loss(self) -> torch.Tensor:
        """Mean weighted squared error of the instances, plus that of the prior-preservation rows."""
        rows = [self._instance_rows()]
        if self.prior is not None:
            rows.append(self._prior_rows(self.prior))
        latents, timesteps, text = (
            torch.cat([getattr(part, name) for part in rows]) for name in ("latents", "timesteps", "text")
        )
        with self.slots.bind(self.slots.gather()):
            predictions = self.base.unet(latents, timesteps, text).sample.float()
        losses = []
        for part, prediction in zip(rows, predictions.split([len(part.latents) for part in rows]), strict=True):
            error = (prediction - part.target).square().mean(dim=(1, 2, 3))
            losses.append((error * part.weights).mean())
        return losses[0] + sum(self.config.prior_loss_weight * loss for loss in losses[1:])

    def _instance_rows(self) -> NoisyRows:
        order = epoch_order(len(self.instances), self.config.train_batch_size, self.config.seed, self.step)
        return self._noisy_rows(self.instances.rows(order), "instance")

    def _prior_rows(self, prior: Prior) -> NoisyRows:
        """Class images, every second one with a prompt about anything, as the bare base model sees them.

        The target is the bare model's own prediction instead of the noise: zero where nothing has drifted, so that
        little of it is needed and the prompt need not fit the image.
        """
        size = self.config.train_batch_size
        examples = prior.examples.rows(epoch_order(len(prior.examples), size, self.config.seed, self.step))
        generator = seeded_generator(self.config.seed, "words", self.step)
        words = prior.word_text[torch.randint(len(prior.word_text), (size,), generator=generator)]
        is_word = (torch.arange(size, device=self.base.device) + self.step * size) % 2 == 0
        text = torch.where(is_word.view(-1, 1, 1), words, examples.text)
        rows = self._noisy_rows(Examples(examples.latents, text), "class")
        with torch.no_grad():
            target = self.base.unet(rows.latents, rows.timesteps, rows.text).sample.float()
        return replace(rows, target=target)

    def _noisy_rows(self, examples: Examples, purpose: str) -> NoisyRows:
        generator = seeded_generator(self.config.seed, purpose, self.step)
        noise = torch.randn(examples.latents.shape, generator=generator).to(self.base.device)
        timesteps = self.process.draw_timesteps(len(examples), generator)
        return NoisyRows(
            latents=self.process.add_noise(examples.latents, noise, timesteps).to(self.base.dtype),
            timesteps=timesteps,
            text=examples.text,
            target=self.process.target(examples.latents, noise, timesteps),
            weights=self.process.loss_weights(timesteps, self.config.snr_gamma),
        )


def learning_rate(config: TrainingConfig, step: int) -> float:
    """The learning rate at `step`, counted from 0: linear warm-up, then the schedule's way to zero at the end."""
    if step < config.lr_warmup_steps:
        return config.learning_rate * (step + 1) / config.lr_warmup_steps
    done = (step - config.lr_warmup_steps) / max(1, config.max_train_steps - config.lr_warmup_steps)
    factor = {"constant": 1.0, "linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2}[config.lr_scheduler]
    return config.learning_rate * factor
