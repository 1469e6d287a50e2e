"""Hyperparameters: their names, limits, and what follows from what. Needs no torch.

The fields are those of `atelier.trainer.v1.TrainingConfig`, which says what each one means. Their defaults are the
methods' business.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from atelier.errors import FieldViolation
from atelier.nearest import did_you_mean
from services.trainer.training.base_facts import BaseFacts
from services.trainer.training.limits import (
    FIELD_PREFIX,
    choice,
    field_violations,
    flag,
    number,
    raise_violations,
    text,
    violation,
    whole,
)

MAX_SEED = 2**53 - 1
LEARNING_RATES = ("learning_rate", "text_encoder_learning_rate", "embedding_learning_rate")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingConfig:
    """One job's hyperparameters, complete and within their limits.

    Raises:
        InvalidArgumentError: with one violation for each wrong field.
    """

    max_train_steps: int = whole(1, 20_000)
    train_batch_size: int = whole(1, 64)
    learning_rate: float = number(0, 10, above=True)
    lr_scheduler: str = choice("constant", "linear", "cosine")
    lr_warmup_steps: int = whole(0, 20_000)
    rank: int = whole(1, 128)
    lora_alpha: float = number(0, 1024, above=True)
    lora_layers: Literal["attention", "linear", "all"] = choice("attention", "linear", "all")
    prior_loss_weight: float = number(0, 10)
    num_class_images: int = whole(1, 1000)
    resolution: int = whole(32, 8192)
    seed: int = whole(0, MAX_SEED)
    snr_gamma: float = number(0, 100)
    max_grad_norm: float = number(0, 1000, above=True)
    adam_weight_decay: float = number(0, 1)
    checkpointing_steps: int = whole(1, 20_000)
    validation_steps: int = whole(0, 20_000)
    optimizer: str = choice("adamw", "adamw-8bit", "adafactor", "prodigy")
    adam_beta1: float = number(0, 1, below=True)
    adam_beta2: float = number(0, 1, below=True)
    precision: str = choice("", "fp32", "bf16", "fp16")
    gradient_accumulation_steps: int = whole(1, 64)
    gradient_checkpointing: bool = flag()
    noise_offset: float = number(0, 1)
    caption_dropout: float = number(0, 1)
    random_flip: bool = flag()
    random_crop: bool = flag()
    aspect_ratio_buckets: bool = flag()
    unmasked_weight: float = number(0, 1)
    use_rslora: bool = flag()
    use_dora: bool = flag()
    lora_dropout: float = number(0, 1, below=True)
    train_text_encoder: bool = flag()
    text_encoder_learning_rate: float = number(0, 10, above=True)
    num_vectors: int = whole(1, 32)
    initializer_word: str = text(64)
    embedding_learning_rate: float = number(0, 10, above=True)
    pivot_fraction: float = number(0, 1, above=True, below=True)
    ema_decay: float = number(0, 1, below=True)
    publish_weights: str = choice("best", "last")
    early_stopping: bool = flag()
    repeats: int = whole(1, 100)

    def __post_init__(self) -> None:
        wrong = field_violations(self)
        if not wrong and self.lr_warmup_steps > self.max_train_steps:
            allowed = f"at most max_train_steps, {self.max_train_steps}"
            wrong = [violation("lr_warmup_steps", self.lr_warmup_steps, allowed)]
        raise_violations(wrong)


def pivot_step(config: TrainingConfig) -> int:
    """The number of steps before the pivot of pivotal tuning."""
    return round(config.pivot_fraction * config.max_train_steps)


def complete_config(
    overrides: Mapping[str, Any], defaults: Mapping[str, Any], facts: BaseFacts, *, used: Collection[str]
) -> TrainingConfig:
    """A job's hyperparameters: what its request set over the method's defaults for its base model.

    What follows from others unless it is set: `lora_alpha` is the rank (a scale of 1), `resolution` the model's own,
    `lr_warmup_steps` at most `max_train_steps`, and every learning rate 1 for Prodigy, which finds the rate itself.

    Args:
        used: names of the fields that the method uses; only they are checked against each other.

    Raises:
        InvalidArgumentError: an unknown field, or a value outside its limits.
    """
    raise_violations(_unknown_fields(overrides))
    values = {**defaults, **overrides}
    values["resolution"] = values.get("resolution") or facts.default_size
    values.setdefault("lora_alpha", float(min(_whole_or_one(values["rank"]), 128)))
    if "lr_warmup_steps" not in overrides:
        values["lr_warmup_steps"] = min(values["lr_warmup_steps"], _whole_or_one(values["max_train_steps"]))
    if values["optimizer"] == "prodigy":
        values.update(_prodigy_rates(overrides))
    config = TrainingConfig(**values)
    raise_violations(_violations_together(config, facts, used))
    return config


def _unknown_fields(overrides: Mapping[str, Any]) -> list[FieldViolation]:
    names = [f.name for f in fields(TrainingConfig)]
    return [
        FieldViolation(
            FIELD_PREFIX + name[:64],
            f"is no hyperparameter; {did_you_mean(name, names)}there are {', '.join(names)}",
        )
        for name in overrides
        if name not in names
    ]


def _prodigy_rates(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Prodigy's estimate is one for all parameters, and so is the factor on it."""
    given = {name: overrides[name] for name in LEARNING_RATES if name in overrides}
    return dict.fromkeys(LEARNING_RATES, next(iter(given.values()), 1.0)) | given


def _violations_together(config: TrainingConfig, facts: BaseFacts, used: Collection[str]) -> list[FieldViolation]:
    """What is wrong with fields beside each other, the base model and the method."""
    wrong = []
    if config.resolution % facts.size_factor:
        allowed = f"a multiple of {facts.size_factor} for this base model"
        wrong.append(violation("resolution", config.resolution, allowed))
    rates = {name: getattr(config, name) for name in LEARNING_RATES if name in used}
    if config.optimizer == "prodigy" and len(set(rates.values())) > 1:
        name, rate = list(rates.items())[-1]
        wrong.append(violation(name, rate, f"one rate for {', '.join(rates)} with prodigy"))
    if "pivot_fraction" in used:
        wrong.extend(_pivot_violations(config))
    return wrong


def _pivot_violations(config: TrainingConfig) -> list[FieldViolation]:
    steps = config.max_train_steps
    if steps < 2:
        return [violation("max_train_steps", steps, "at least 2, one before the pivot and one after it")]
    if not 1 <= pivot_step(config) < steps:
        allowed = f"a fraction that puts the pivot after step 1 to {steps - 1} of {steps}"
        return [violation("pivot_fraction", config.pivot_fraction, allowed)]
    return []


def _whole_or_one(value: Any) -> int:
    """So that a wrong value does not make the fields that follow from it wrong too."""
    return value if type(value) is int and value > 0 else 1
