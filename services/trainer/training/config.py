"""Hyperparameters: their names, limits and defaults. Needs no torch.

The fields are those of `atelier.trainer.v1.TrainingConfig`, which says what each one means.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from atelier.errors import FieldViolation, InvalidArgumentError

FIELD_PREFIX = "config."
MAX_SEED = 2**53 - 1


def _whole(low: int, high: int) -> Any:
    return field(metadata={"type": int, "low": low, "high": high, "allowed": f"a whole number from {low} to {high}"})


def _number(low: float, high: float, *, above: bool = False) -> Any:
    allowed = f"a number above {low:g} up to {high:g}" if above else f"a number from {low:g} to {high:g}"
    return field(metadata={"type": float, "low": low, "high": high, "above": above, "allowed": allowed})


def _choice(*words: str) -> Any:
    return field(metadata={"type": str, "words": words, "allowed": f"one of {', '.join(words)}"})


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingConfig:
    """One job's hyperparameters, complete and within their limits.

    Raises:
        InvalidArgumentError: with one violation for each wrong field.
    """

    max_train_steps: int = _whole(1, 20_000)
    train_batch_size: int = _whole(1, 64)
    learning_rate: float = _number(0, 0.1, above=True)
    lr_scheduler: str = _choice("constant", "linear", "cosine")
    lr_warmup_steps: int = _whole(0, 20_000)
    rank: int = _whole(1, 128)
    lora_alpha: float = _number(0, 1024, above=True)
    lora_layers: Literal["attention", "all"] = _choice("attention", "all")
    prior_loss_weight: float = _number(0, 10)
    num_class_images: int = _whole(1, 1000)
    resolution: int = _whole(32, 8192)
    seed: int = _whole(0, MAX_SEED)
    snr_gamma: float = _number(0, 100)
    max_grad_norm: float = _number(0, 1000, above=True)
    adam_weight_decay: float = _number(0, 1)
    checkpointing_steps: int = _whole(1, 20_000)
    validation_steps: int = _whole(0, 20_000)

    def __post_init__(self) -> None:
        values = ((f.name, getattr(self, f.name), f.metadata) for f in fields(self))
        wrong = [_violation(name, value, limits) for name, value, limits in values if not _is_within(value, limits)]
        if not wrong and self.lr_warmup_steps > self.max_train_steps:
            allowed = {"allowed": f"at most max_train_steps, {self.max_train_steps}"}
            wrong = [_violation("lr_warmup_steps", self.lr_warmup_steps, allowed)]
        _raise(wrong)


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseFacts:
    """What defaults and limits depend on, read from a base model's configuration files."""

    size_factor: int
    default_size: int
    is_small: bool

    @classmethod
    def read(cls, path: Path) -> BaseFacts:
        """Of a diffusers folder. Small means a UNet of at most 256 channels, as in `emoji-sd`."""
        unet = json.loads((path / "unet" / "config.json").read_text())
        vae = json.loads((path / "vae" / "config.json").read_text())
        size_factor = 2 ** (len(vae["block_out_channels"]) - 1)
        return cls(
            size_factor=size_factor,
            default_size=unet["sample_size"] * size_factor,
            is_small=max(unet["block_out_channels"]) <= 256,
        )


def complete_config(overrides: Mapping[str, Any], defaults: Mapping[str, Any], facts: BaseFacts) -> TrainingConfig:
    """A job's hyperparameters: what its request set over the method's defaults for its base model.

    What follows from others unless it is set: `lora_alpha` is the rank (a scale of 1), `resolution` the model's own,
    and `lr_warmup_steps` at most `max_train_steps`.

    Raises:
        InvalidArgumentError: an unknown field, or a value outside its limits.
    """
    names = [f.name for f in fields(TrainingConfig)]
    _raise(
        [
            FieldViolation(FIELD_PREFIX + name[:64], f"is no hyperparameter; there are {', '.join(names)}")
            for name in overrides
            if name not in names
        ]
    )
    values = {**defaults, **overrides}
    values["resolution"] = values.get("resolution") or facts.default_size
    values.setdefault("lora_alpha", float(min(_whole_or_one(values["rank"]), 128)))
    if "lr_warmup_steps" not in overrides:
        values["lr_warmup_steps"] = min(values["lr_warmup_steps"], _whole_or_one(values["max_train_steps"]))
    config = TrainingConfig(**values)
    if config.resolution % facts.size_factor:
        allowed = {"allowed": f"a multiple of {facts.size_factor} for this base model"}
        _raise([_violation("resolution", config.resolution, allowed)])
    return config


def _is_within(value: Any, limits: Mapping[str, Any]) -> bool:
    if limits["type"] is str:
        return value in limits["words"]
    numeric = int if limits["type"] is int else (int, float)
    if isinstance(value, bool) or not isinstance(value, numeric):
        return False
    return limits["low"] <= value <= limits["high"] and not (limits.get("above") and value == limits["low"])


def _whole_or_one(value: Any) -> int:
    """So that a wrong value does not make the fields that follow from it wrong too."""
    return value if type(value) is int and value > 0 else 1


def _violation(name: str, value: Any, limits: Mapping[str, Any]) -> FieldViolation:
    return FieldViolation(FIELD_PREFIX + name, f"is {str(value)[:64]!r}; allowed is {limits['allowed']}")


def _raise(wrong: list[FieldViolation]) -> None:
    if wrong:
        raise InvalidArgumentError(wrong[0].field, wrong[0].description, more=wrong[1:])
