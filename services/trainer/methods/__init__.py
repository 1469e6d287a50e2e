"""The training methods by name. Needs no torch: a method's module is imported when it is to train."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from atelier.errors import InvalidArgumentError
from services.trainer.methods import dreambooth_lora_defaults
from services.trainer.methods.base import Method, Train
from services.trainer.training.config import BaseFacts, TrainingConfig, complete_config

METHODS: Mapping[str, Method] = {
    "dreambooth-lora": Method(
        module="services.trainer.methods.dreambooth_lora", defaults=dreambooth_lora_defaults.defaults
    ),
}


def find_method(name: str) -> Method:
    """Raises InvalidArgumentError, with the names that are allowed, when there is no such method."""
    if name not in METHODS:
        raise InvalidArgumentError(
            "method", f"{name[:64]!r} is none of {', '.join(sorted(METHODS))}", reason="METHOD_UNKNOWN"
        )
    return METHODS[name]


def resolve_config(method: str, overrides: Mapping[str, Any], *, base_path: Path) -> TrainingConfig:
    """A job's complete hyperparameters: what its request set over the method's defaults for this base model.

    Raises:
        InvalidArgumentError: an unknown method, an unknown hyperparameter, or a value outside its limits; the fields
            are a job's, such as `config.rank`.
    """
    facts = BaseFacts.read(base_path)
    return complete_config(overrides, find_method(method).defaults(facts), facts)


def load_train(method: str) -> Train:
    """The method's `train` function. Imports torch."""
    train: Train = importlib.import_module(find_method(method).module).train
    return train
