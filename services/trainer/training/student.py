"""A base model together with what a job learns on it: it predicts, encodes and draws as the job's adapter would."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager

import torch
from torch import nn

from atelier.diffusion.base import Base
from atelier.diffusion.conditioning import Conditioning
from atelier.diffusion.lowrank import Factors
from atelier.diffusion.sampler import SamplingConfig, sample
from atelier.diffusion.words import LearnedWords
from services.trainer.training.prompts import PromptCache, base_prompts
from services.trainer.training.trainables import FullWeights, LowRankUpdates, Trainable, WordVectors


class Student:
    """What one job trains.

    Args:
        base: the bare base model, shared and frozen.
        trainables: each with a name of its own. If one cannot be made, those before it leave the base model as it was.
        words: the placeholder tokens that the `WordVectors` among them stand for, and how many vectors each has.
    """

    def __init__(self, base: Base, trainables: Iterable[Trainable], words: Mapping[str, int] | None = None) -> None:
        self.bare = base
        self.trainables: list[Trainable] = []
        try:
            for each in trainables:
                self.trainables.append(each)
            own = {each.name: each.model for each in self.trainables if isinstance(each, FullWeights)}
            self.base = _with_models(base, own)
            tables = [each.parameters() for each in self.trainables if isinstance(each, WordVectors)]
            self.words = LearnedWords(self.base, words or {}, tables[0]) if tables else None
            self._fixed_text = self._text_cache()
        except BaseException:
            self.close()  # nobody gets this student, so nobody else would
            raise

    def parameters(self) -> dict[str, nn.Parameter]:
        """Of all trainables, as `TRAINABLE.PARAMETER`."""
        return {f"{each.name}.{name}": p for each in self.trainables for name, p in each.parameters().items()}

    def buffers(self) -> dict[str, torch.Tensor]:
        """Of all trainables, as `TRAINABLE.BUFFER`."""
        return {f"{each.name}.{name}": b for each in self.trainables for name, b in each.buffers().items()}

    def begin_step(self, step: int) -> list[Trainable]:
        """Lets those learn whose step it is, and returns them."""
        learning = [each for each in self.trainables if step in each.steps]
        for each in self.trainables:
            for parameter in each.parameters().values():
                parameter.requires_grad_(each in learning)
        if any(each.acts_on_text for each in learning):
            self._fixed_text = self._text_cache()
        return learning

    @contextmanager
    def acting(self, *, training: bool) -> Iterator[None]:
        """All trainables act inside; float32 weights on a base of half precision in mixed precision (autocast)."""
        with ExitStack() as stack:
            for each in self.trainables:
                stack.enter_context(each.acting(training=training))
            stack.enter_context(self._autocast())
            yield

    def _autocast(self) -> AbstractContextManager[object]:
        is_mixed = self.bare.dtype != torch.float32 and bool(self.models())
        return torch.autocast(self.bare.device.type, dtype=self.bare.dtype, enabled=is_mixed)

    def encode(self, prompts: Sequence[str], learning: Sequence[Trainable]) -> Conditioning:
        """Conditioning of prompts, one row each: with gradients if one of `learning` acts on text, else remembered."""
        if not any(each.acts_on_text for each in learning):
            return self._fixed_text.rows(prompts)
        return self.base.encode_distinct(prompts, self.words)

    def draw(
        self, prompts: Sequence[str], seeds: Sequence[int], config: SamplingConfig, check_stop: Callable[[], None]
    ) -> torch.Tensor:
        """Images as `sampler.sample` gives them; `check_stop` may raise at any denoising step."""
        with torch.no_grad(), self.acting(training=False):
            return sample(self.base, prompts, seeds, config, words=self.words, before_step=check_stop)

    def factors(self) -> dict[str, Factors]:
        """The low-rank updates by component."""
        return {each.component: each.slots.factors(0) for each in self.trainables if isinstance(each, LowRankUpdates)}

    def tables(self) -> dict[str, torch.Tensor]:
        """The vectors of the learned words by `embeds_key`."""
        return {
            key: table.detach().clone()
            for each in self.trainables
            if isinstance(each, WordVectors)
            for key, table in each.parameters().items()
        }

    def models(self) -> dict[str, nn.Module]:
        """The models whose weights were learnt, by component. Inside `acting(training=False)` they are as published."""
        return {each.component: each.model for each in self.trainables if isinstance(each, FullWeights)}

    def close(self) -> None:
        """Leaves the base model as it was."""
        for each in self.trainables:
            each.close()

    def _text_cache(self) -> PromptCache:
        if not any(each.acts_on_text for each in self.trainables):
            return base_prompts(self.bare)
        # Not through self: in a cycle, a closed student's models would stay in memory until the next collection.
        base, words = self.base, self.words
        return PromptCache(lambda prompts: base.encode_prompts(prompts, words))


def _with_models(base: Base, models: Mapping[str, nn.Module]) -> Base:
    """A base model with some of its models exchanged. Theirs are float32 numbers; what goes in and out is as before."""
    if not models:
        return base
    towers = tuple(dataclasses.replace(tower, model=models.get(tower.component, tower.model)) for tower in base.towers)
    denoiser = models.get(base.denoiser_name, base.denoiser)
    return dataclasses.replace(base, denoiser=denoiser, towers=towers)
