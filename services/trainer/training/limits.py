"""Limits of hyperparameters: fields of a dataclass that know their type, what they allow, and how to say so."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import Field, field, fields
from typing import Any

from atelier.errors import FieldViolation, InvalidArgumentError
from atelier.nearest import did_you_mean

FIELD_PREFIX = "config."


def whole(low: int, high: int) -> Any:
    """A field of whole numbers."""
    return field(metadata={"type": int, "low": low, "high": high, "allowed": f"a whole number from {low} to {high}"})


def number(low: float, high: float, *, above: bool = False, below: bool = False) -> Any:
    """A field of numbers; `above` and `below` leave out the bound itself."""
    start = f"above {low:g}" if above else f"from {low:g}"
    end = f"to below {high:g}" if below else f"{'up ' if above else ''}to {high:g}"
    limits = {"type": float, "low": low, "high": high, "above": above, "below": below}
    return field(metadata={**limits, "allowed": f"a number {start} {end}"})


def flag() -> Any:
    """A field that is true or false."""
    return field(metadata={"type": bool, "allowed": "true or false"})


def choice(*words: str) -> Any:
    """A field of one of some words; an empty word stands for the service's choice."""
    named = ", ".join(word for word in words if word)
    allowed = f"one of {named}" + (", or empty" if "" in words else "")
    return field(metadata={"type": str, "words": words, "allowed": allowed})


def text(max_characters: int) -> Any:
    """A field of free text."""
    return field(
        metadata={"type": str, "max_characters": max_characters, "allowed": f"at most {max_characters} characters"}
    )


def field_violations(instance: Any) -> list[FieldViolation]:
    """What is wrong with a dataclass of the fields above, one violation for each wrong field."""
    values = [(f, getattr(instance, f.name)) for f in fields(instance)]
    return [_field_violation(f, value) for f, value in values if not _is_within(value, f.metadata)]


def violation(name: str, value: Any, allowed: str) -> FieldViolation:
    """A hyperparameter's wrong value and what is allowed."""
    return FieldViolation(FIELD_PREFIX + name, f"is {str(value)[:64]!r}; allowed is {allowed}")


def raise_violations(wrong: list[FieldViolation]) -> None:
    """Raises InvalidArgumentError with all of them, if there are any."""
    if wrong:
        raise InvalidArgumentError(wrong[0].field, wrong[0].description, more=wrong[1:])


def _field_violation(wrong: Field[Any], value: Any) -> FieldViolation:
    near = did_you_mean(value, wrong.metadata.get("words", ()))
    return violation(wrong.name, value, wrong.metadata["allowed"] + (f"; {near.rstrip()}" if near else ""))


def _is_within(value: Any, limits: Mapping[str, Any]) -> bool:
    if limits["type"] is bool:
        return isinstance(value, bool)
    if limits["type"] is str:
        return value in limits["words"] if "words" in limits else _is_short_text(value, limits["max_characters"])
    numeric = int if limits["type"] is int else (int, float)
    if isinstance(value, bool) or not isinstance(value, numeric):
        return False
    if (limits.get("above") and value == limits["low"]) or (limits.get("below") and value == limits["high"]):
        return False
    return bool(limits["low"] <= value <= limits["high"])


def _is_short_text(value: Any, max_characters: int) -> bool:
    return isinstance(value, str) and len(value) <= max_characters
