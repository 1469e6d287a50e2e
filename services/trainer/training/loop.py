"""The training loop: one optimizer step after the other.

Everything random in a step is drawn from generators seeded by (job seed, step), so a loop that is resumed from its
state goes on exactly as if it had never stopped.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch.nn.utils import clip_grad_norm_

from atelier.errors import FailedPreconditionError
from services.trainer.methods.base import StepDone
from services.trainer.training.config import TrainingConfig
from services.trainer.training.early_stopping import DREAMBOOTH, TEXTUAL_INVERSION, LossVarianceStop
from services.trainer.training.loss import Lessons, NoisyRows
from services.trainer.training.noise import seeded_generator
from services.trainer.training.optimizers import ParameterGroup, begin_phase, learning_rate_factor, make_optimizer
from services.trainer.training.student import Student
from services.trainer.training.trainables import Trainable, WordVectors

_LOSS_SMOOTHING = 0.95
# Below this loss scale fp16 gradients are not rescued by a smaller one.
_MIN_LOSS_SCALE = 1.0
# Early stopping looks at the loss on fixed noise every so many steps.
_FIXED_LOSS_STEPS = 10
_FIXED_BATCHES = 2


class TrainingLoop:
    """A job in training: its student, its optimizer, and how far it is.

    `step`, `smoothed_loss`, the student's parameters and buffers, the optimizer's and the loss scaler's state and
    `early_stop`'s losses are all that it consists of.
    """

    def __init__(self, student: Student, config: TrainingConfig, lessons: Lessons) -> None:
        self.student, self.config, self._lessons = student, config, lessons
        self.groups = [
            ParameterGroup(
                name=each.name,
                parameters=each.parameters(),
                learning_rate=each.learning_rate,
                weight_decay=each.weight_decay,
            )
            for each in student.trainables
        ]
        self.optimizer = make_optimizer(config, self.groups)
        self._schedules = {each.name: _over(config, len(each.steps)) for each in student.trainables}
        is_half = student.bare.dtype == torch.float16
        self.scaler = torch.amp.GradScaler(student.bare.device.type, enabled=is_half)
        # Losses of different phases do not compare: the rule looks at the last.
        self._last_phase = max(each.steps.start for each in student.trainables)
        self.early_stop = self._make_early_stop() if config.early_stopping else None
        self.step = 0
        self.smoothed_loss = 0.0
        self.stopped_early = False

    @property
    def is_done(self) -> bool:
        """No step is left to take."""
        return self.stopped_early or self.step == self.config.max_train_steps

    def run(self) -> Iterator[StepDone]:
        """Trains from `step` to the end.

        Raises:
            FailedPreconditionError: the loss is not finite; the parameters are those before that step.
        """
        start, first = time.perf_counter(), self.step
        images_a_step = self.config.train_batch_size * self.config.gradient_accumulation_steps
        while not self.is_done:
            self.take_step()
            seconds_per_step = (time.perf_counter() - start) / (self.step - first)
            yield StepDone(
                step=self.step,
                total_steps=self.config.max_train_steps,
                loss=self.smoothed_loss,
                images_per_second=images_a_step / seconds_per_step,
                eta_seconds=0.0 if self.is_done else seconds_per_step * (self.config.max_train_steps - self.step),
            )

    def take_step(self) -> None:
        """One optimizer step."""
        learning = self.student.begin_step(self.step)
        if self.step and any(each.steps.start == self.step for each in learning):
            begin_phase(self.optimizer)
        batches = self.config.gradient_accumulation_steps
        value = sum(self._backward(self.step * batches + i, learning) for i in range(batches))
        self._apply(learning, value)
        smoothing = _LOSS_SMOOTHING if self.step else 0.0
        self.smoothed_loss = smoothing * self.smoothed_loss + (1 - smoothing) * value
        self.step += 1
        if self.early_stop is not None and self.step > self._last_phase and self.step % _FIXED_LOSS_STEPS == 0:
            self.stopped_early = self.early_stop.update(self._fixed_loss())

    def _backward(self, index: int, learning: Sequence[Trainable]) -> float:
        """Adds a batch's gradients to those of the step; returns its share of the step's loss."""
        # The prior's prompts have no learned words, so there is nothing in it for vectors alone.
        with_prior = not _are_words(learning)
        value = 0.0
        for rows in self._lessons.batch(index, with_prior=with_prior):
            # Gradient checkpointing runs layers again on the way back, so what acts must go on acting.
            with self.student.acting(training=True), self._seeded_dropout(index):
                loss = self._loss(rows, learning) / self.config.gradient_accumulation_steps
                self.scaler.scale(loss).backward()
            value += loss.item()
        return value

    def _loss(self, rows: NoisyRows, learning: Sequence[Trainable]) -> torch.Tensor:
        conditioning = self.student.encode(rows.prompts, learning).with_sizes(rows.sizes)
        return rows.loss(self.student.base.predict(rows.latents, rows.timesteps, conditioning))

    def _apply(self, learning: Sequence[Trainable], value: float) -> None:
        """Clips the gradients and takes the optimizer's step."""
        self.scaler.unscale_(self.optimizer)
        parameters = [p for each in learning for p in each.parameters().values()]
        norm = clip_grad_norm_(parameters, self.config.max_grad_norm)
        if not math.isfinite(value) or not (torch.isfinite(norm) or self._may_rescale()):
            self._fail(learning)
        for group, trainable in zip(self.optimizer.param_groups, self.student.trainables, strict=True):
            group["lr"] = self.learning_rate(trainable)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        for each in learning:
            each.after_step()

    def learning_rate(self, trainable: Trainable) -> float:
        """At the present step: the schedule spans the steps in which the trainable learns."""
        steps = trainable.steps
        if self.step not in steps:
            return 0.0
        return trainable.learning_rate * learning_rate_factor(self._schedules[trainable.name], self.step - steps.start)

    def _may_rescale(self) -> bool:
        """Whether the loss scaler can answer a gradient that overflowed: it skips the step and scales less."""
        return self.scaler.is_enabled() and self.scaler.get_scale() > _MIN_LOSS_SCALE

    def _fail(self, learning: Sequence[Trainable]) -> None:
        rate = "embedding_learning_rate" if all(isinstance(each, WordVectors) for each in learning) else "learning_rate"
        advice = f"a lower {rate}" + (" or precision=bf16" if self.scaler.is_enabled() else "")
        raise FailedPreconditionError(
            f"training diverged at step {self.step + 1}: the loss or its gradient is not finite; try {advice}",
            reason="TRAINING_DIVERGED",
            metadata={"step": str(self.step + 1)},
        )

    def release_optimizer(self) -> None:
        """Frees the memory of the optimizer's state; no step can follow."""
        self.optimizer.state.clear()

    def _make_early_stop(self) -> LossVarianceStop:
        return LossVarianceStop(
            TEXTUAL_INVERSION if _are_words(self.student.trainables) else DREAMBOOTH,
            total_steps=self.config.max_train_steps - self._last_phase,
            interval_steps=_FIXED_LOSS_STEPS,
        )

    @torch.no_grad()
    def _fixed_loss(self) -> float:
        losses = []
        with self.student.acting(training=False):
            for index in range(_FIXED_BATCHES):
                losses += [self._loss(rows, self.student.trainables).item() for rows in self._lessons.fixed(index)]
        return sum(losses) / _FIXED_BATCHES

    @contextmanager
    def _seeded_dropout(self, index: int) -> Iterator[None]:
        """Dropout draws from the global generators: their state is the batch's inside, and as before afterwards."""
        if not self.config.lora_dropout:
            yield
            return
        device = self.student.bare.device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(seeded_generator(self.config.seed, "dropout", index).initial_seed())
            yield


def _are_words(trainables: Sequence[Trainable]) -> bool:
    return all(isinstance(each, WordVectors) for each in trainables)


def _over(config: TrainingConfig, steps: int) -> TrainingConfig:
    """The same schedule over so many steps."""
    return dataclasses.replace(config, max_train_steps=steps, lr_warmup_steps=min(config.lr_warmup_steps, steps))
