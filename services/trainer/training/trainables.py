"""What a job can learn: low-rank updates, vectors of new words, or all weights of a model.

Each is a `Trainable`: named float32 parameters, and a way to act on a base model for the length of a call. A method
combines some; the training loop, checkpoints and load-back gate know nothing else of methods.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Protocol

import torch
from torch import nn

from atelier.diffusion.base import Base, TextTower
from atelier.diffusion.lowrank import LayerSelection
from atelier.diffusion.training_slots import TrainingSlots, TrainingSlotsConfig
from services.trainer.training.config import TrainingConfig
from services.trainer.training.noise import seeded_generator

# Vectors of learned words stay between these quantiles of the vocabulary's norms.
_NORM_QUANTILES = (0.01, 0.99)


class Trainable(Protocol):
    """Something that learns in some of a job's steps, and acts in all."""

    name: str
    """Distinct in a job: the prefix of its parameters in checkpoints."""
    steps: range
    learning_rate: float
    weight_decay: float
    acts_on_text: bool
    """Whether text must be encoded anew after each of its steps."""

    def parameters(self) -> Mapping[str, nn.Parameter]:
        """What the optimizer changes."""
        ...

    def buffers(self) -> Mapping[str, torch.Tensor]:
        """What `after_step` changes besides, in place."""
        ...

    def acting(self, *, training: bool) -> AbstractContextManager[None]:
        """Acts on the base model inside; as it is to be published unless `training`."""
        ...

    def after_step(self) -> None:
        """Called after each optimizer step that it learnt in."""
        ...

    def close(self) -> None:
        """Leaves the base model as it was."""
        ...


def component_rates(base: Base, config: TrainingConfig) -> dict[str, float]:
    """The peak learning rates of the components that a job trains: the denoiser, and the text encoders if asked for."""
    rates = {base.denoiser_name: config.learning_rate}
    if config.train_text_encoder:
        rates |= {tower.component: config.text_encoder_learning_rate for tower in base.towers}
    return rates


class LowRankUpdates:
    """LoRA (Hu et al. 2021) of one component of a base model, in the slot bank's form."""

    weight_decay: float

    def __init__(
        self, component: str, model: nn.Module, config: TrainingConfig, *, learning_rate: float, steps: range
    ) -> None:
        self.name, self.component, self.steps = component, component, steps
        self.learning_rate, self.weight_decay = learning_rate, config.adam_weight_decay
        self.acts_on_text = component.startswith("text_encoder")
        # The convention of the field: of text encoders, the attention projections alone.
        layers: LayerSelection = "attention" if self.acts_on_text else config.lora_layers
        slots = TrainingSlotsConfig(
            layers=layers,
            rank=config.rank,
            scale=config.lora_alpha / (config.rank**0.5 if config.use_rslora else config.rank),
            use_dora=config.use_dora,
            dropout=config.lora_dropout,
        )
        self.slots = TrainingSlots(model, slots, seeds=[config.seed])

    def parameters(self) -> Mapping[str, nn.Parameter]:
        """`LAYER.lora_A` and so on, see `TrainingSlots.parameters`."""
        return self.slots.parameters(0)

    def buffers(self) -> Mapping[str, torch.Tensor]:
        """None."""
        return {}

    def acting(self, *, training: bool) -> AbstractContextManager[None]:
        """Binds the slot."""
        return self.slots.bind(self.slots.gather(training=training))

    def after_step(self) -> None:
        """Nothing."""

    def close(self) -> None:
        """Takes the hooks off."""
        self.slots.close()


class WordVectors:
    """Vectors of new words (Gal et al. 2022): one table for each text encoder, spliced in by `words.LearnedWords`.

    After each step the norms are brought back into the vocabulary's range: vectors outside it drown the rest of the
    prompt. Once the vectors have stopped learning nothing touches them any more.
    """

    name, weight_decay, acts_on_text = "words", 0.0, True

    def __init__(self, base: Base, config: TrainingConfig, *, num_words: int, steps: range) -> None:
        self.learning_rate, self.steps = config.embedding_learning_rate, steps
        count = num_words * config.num_vectors
        self._tables = {tower.embeds_key: nn.Parameter(_initial_vectors(tower, count, config)) for tower in base.towers}
        self._initial = {key: table.detach().clone() for key, table in self._tables.items()}
        self._norms = {tower.embeds_key: _norm_range(tower) for tower in base.towers}

    def parameters(self) -> Mapping[str, nn.Parameter]:
        """[vectors, width] by the towers' `embeds_key`."""
        return self._tables

    def has_learnt(self) -> bool:
        """Whether every table is another one than it began as."""
        return not any(torch.equal(table, self._initial[key]) for key, table in self._tables.items())

    def buffers(self) -> Mapping[str, torch.Tensor]:
        """None."""
        return {}

    def acting(self, *, training: bool) -> AbstractContextManager[None]:
        """Nothing to do: the student encodes prompts with its words."""
        return nullcontext()

    @torch.no_grad()
    def after_step(self) -> None:
        """Brings norms back into the vocabulary's range."""
        for key, table in self._tables.items():
            norms = table.norm(dim=1, keepdim=True)
            table.mul_(norms.clamp(*self._norms[key]) / norms)

    def close(self) -> None:
        """Nothing."""


def _initial_vectors(tower: TextTower, count: int, config: TrainingConfig) -> torch.Tensor:
    """The initializer word's vectors in turn; without one, noise of the vocabulary's spread (as cog-sdxl does)."""
    vocabulary = tower.model.get_input_embeddings().weight.detach().float()
    if config.initializer_word.strip():
        ids = tower.tokenizer(config.initializer_word, add_special_tokens=False).input_ids
        return vocabulary[[ids[i % config.num_vectors % len(ids)] for i in range(count)]].clone()
    noise = torch.randn(count, vocabulary.shape[1], generator=seeded_generator(config.seed, tower.component, 0))
    return noise.to(vocabulary.device) * vocabulary.std()


def _norm_range(tower: TextTower) -> tuple[float, float]:
    norms = tower.model.get_input_embeddings().weight.detach().float().norm(dim=1)
    low, high = torch.quantile(norms, torch.tensor(_NORM_QUANTILES, device=norms.device)).tolist()
    return low, high


class FullWeights:
    """All weights of a component, as a float32 copy of the job's own; with their moving average (EMA) if asked for.

    The average's decay begins small and rises to its value as diffusers' `EMAModel` has it, or in a short run the
    average would be little else than the base model.
    """

    def __init__(
        self, component: str, model: nn.Module, config: TrainingConfig, *, learning_rate: float, steps: range
    ) -> None:
        self.name, self.component, self.steps = component, component, steps
        self.learning_rate, self.weight_decay = learning_rate, config.adam_weight_decay
        self.acts_on_text = component.startswith("text_encoder")
        self.model = copy.deepcopy(model).float().requires_grad_(True)
        self._parameters = dict(self.model.named_parameters())
        self._decay = config.ema_decay
        self._average = {name: p.detach().clone() for name, p in self._parameters.items()} if config.ema_decay else {}
        self._averaged = torch.zeros(())

    def parameters(self) -> Mapping[str, nn.Parameter]:
        """The model's, by their names in it."""
        return self._parameters

    def buffers(self) -> Mapping[str, torch.Tensor]:
        """The moving averages, and of how many steps they are."""
        return {**self._average, "averaged_steps": self._averaged} if self._average else {}

    @contextmanager
    def acting(self, *, training: bool) -> Iterator[None]:
        """The student's base has the copy already; outside training, the averages stand in its weights' place."""
        if training or not self._average:
            yield
            return
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, average in self._average.items():
            parameter = self._parameters[name]
            parameter.data, self._average[name] = average, parameter.data

    @torch.no_grad()
    def after_step(self) -> None:
        """Moves the averages."""
        steps = int(self._averaged)
        self._averaged += 1
        decay = min(self._decay, (1 + steps) / (10 + steps))
        for name, average in self._average.items():
            average.lerp_(self._parameters[name], 1 - decay)

    def close(self) -> None:
        """Nothing: the base model never had it."""
