"""The training methods by name. Needs no torch: a method's module is imported when it is to train."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

from atelier.errors import FieldViolation, InvalidArgumentError
from atelier.nearest import did_you_mean
from services.trainer.methods import defaults, used_fields
from services.trainer.methods.base import Method, Train
from services.trainer.methods.recipes import find_recipe
from services.trainer.training.base_facts import BaseFacts
from services.trainer.training.config import LEARNING_RATES, TrainingConfig, complete_config
from services.trainer.training.limits import FIELD_PREFIX, raise_violations

METHODS: Mapping[str, Method] = {
    "dreambooth": Method(
        module="services.trainer.methods.dreambooth", fields=used_fields.DREAMBOOTH, defaults=defaults.dreambooth
    ),
    "dreambooth-lora": Method(
        module="services.trainer.methods.dreambooth_lora",
        fields=used_fields.DREAMBOOTH_LORA,
        defaults=defaults.dreambooth_lora,
    ),
    "lora": Method(module="services.trainer.methods.lora", fields=used_fields.LORA, defaults=defaults.lora),
    "pivotal": Method(module="services.trainer.methods.pivotal", fields=used_fields.PIVOTAL, defaults=defaults.pivotal),
    "textual-inversion": Method(
        module="services.trainer.methods.textual_inversion",
        fields=used_fields.TEXTUAL_INVERSION,
        defaults=defaults.textual_inversion,
    ),
}
_ALL_FIELDS = frozenset(f.name for f in fields(TrainingConfig))


def find_method(name: str) -> Method:
    """Raises InvalidArgumentError, with the names that are allowed, when there is no such method."""
    if name not in METHODS:
        raise InvalidArgumentError(
            "method",
            f"{name[:64]!r} is no method; {did_you_mean(name, METHODS)}there are {', '.join(METHODS)}",
            reason="METHOD_UNKNOWN",
        )
    return METHODS[name]


def resolve_config(method: str, overrides: Mapping[str, Any], *, base_path: Path, recipe: str = "") -> TrainingConfig:
    """A job's complete hyperparameters: what its request set, over its recipe, over the service's own values.

    Args:
        recipe: name of a recipe; empty for none.

    Raises:
        InvalidArgumentError: an unknown method, recipe or hyperparameter, a value outside its limits, or one of a
            hyperparameter that the method does not use; the fields are a job's, such as `config.rank`.
        FailedPreconditionError: the base model is of no supported family.
    """
    found = find_method(method)
    facts = BaseFacts.read(base_path)
    settings = dict(find_recipe(recipe, method, facts.family).settings) if recipe else {}
    values = {**found.defaults(facts), **_with_optimizer(settings, overrides)}
    unused = {name: value for name, value in overrides.items() if name in _ALL_FIELDS - found.fields}
    used = {name: value for name, value in overrides.items() if name not in unused}
    config = complete_config(used, values, facts, used=found.fields)
    # What an answered job holds may be sent again: there, unused fields have the values that they have here.
    idle = [name for name, value in unused.items() if value != getattr(config, name)]
    raise_violations([_unused(name, method) for name in idle])
    return config


def _with_optimizer(settings: dict[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe's settings, less the rates that were meant for another kind of optimizer than the job's."""
    published = settings.get("optimizer", "adamw")
    optimizer = overrides.get("optimizer", published)
    if "prodigy" in (published, optimizer) and published != optimizer:
        settings = {name: value for name, value in settings.items() if name not in LEARNING_RATES}
    if optimizer == "prodigy":
        # Its rate grows from next to nothing: a schedule that falls meanwhile would leave nothing of it.
        settings = {"lr_scheduler": "constant", "lr_warmup_steps": 0, **settings}
    return settings


def load_train(method: str) -> Train:
    """Runs jobs of a method: `training.run.run`. Imports torch."""
    run = importlib.import_module("services.trainer.training.run").run
    train: Train = partial(run, importlib.import_module(find_method(method).module).METHOD)
    return train


def _unused(name: str, method: str) -> FieldViolation:
    users = ", ".join(each for each in METHODS if name in METHODS[each].fields)
    return FieldViolation(FIELD_PREFIX + name, f"is not used by {method}; only by {users}")
