"""Words of the command line and of batch files as values of the contracts.

Names and types are checked here, against the contracts' own descriptors; ranges are the services' business.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click
from google.protobuf.descriptor import FieldDescriptor

from atelier.client.trainer import dataset_name
from atelier.nearest import did_you_mean
from atelier.pb.inference.v1.inference_pb2 import AdapterUse
from atelier.pb.trainer.v1.trainer_pb2 import Concept, TrainingConfig


def _flag(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ValueError
    return text.lower() == "true"


_TYPES: dict[int, tuple[Callable[[str], Any], str]] = {
    FieldDescriptor.CPPTYPE_INT32: (int, "a whole number of 32 bits"),
    FieldDescriptor.CPPTYPE_INT64: (int, "a whole number of 64 bits"),
    FieldDescriptor.CPPTYPE_DOUBLE: (float, "a number"),
    FieldDescriptor.CPPTYPE_BOOL: (_flag, "true or false"),
    FieldDescriptor.CPPTYPE_STRING: (str, "text"),
}


def set_hyperparameter(config: TrainingConfig, name: str, value: object) -> None:
    """Sets a field of `config`; text is taken as the field's type (YAML reads `1e-3` as text).

    Raises:
        ValueError: no such field, or a value that is not of its type.
    """
    _set_field(config, name, value, "hyperparameter")


def set_concept_field(concept: Concept, name: str, value: object) -> None:
    """Sets a field of `concept`; its dataset is named by the last part of its name.

    Raises:
        ValueError: no such field, or a value that is not of its type.
    """
    _set_field(concept, name, value, "field of a concept")
    if name == "dataset":
        concept.dataset = dataset_name(concept.dataset)


def parse_concept(text: str) -> Concept:
    """`dataset=NAME;KEY=VALUE;…`, where no value has a semicolon.

    Raises:
        ValueError: not of this form, a key that is unknown or comes twice, or no dataset.
    """
    concept, seen = Concept(), set()
    for part in text.split(";"):
        name, equals, value = part.strip().partition("=")
        if not equals or name in seen:
            raise ValueError(f"{part!r} does not have the form KEY=VALUE, or the key is there already")
        seen.add(name)
        try:
            set_concept_field(concept, name, value)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
    if not concept.dataset:
        raise ValueError("dataset: is missing")
    return concept


def parse_adapter_use(text: str) -> AdapterUse:
    """`NAME[@ALIAS|@VERSION][:WEIGHT]`.

    Raises:
        ValueError: no name, nothing after `@`, or a weight that is no number.
    """
    adapter, colon, weight = text.partition(":")
    name, at, reference = adapter.partition("@")
    if not name or bool(at) != bool(reference):
        raise ValueError(f"is {text!r}; the form is NAME, NAME@ALIAS or NAME@VERSION, and then :WEIGHT if wanted")
    use = AdapterUse(adapter=adapter)
    if colon:
        try:
            use.weight = float(weight)
        except ValueError as error:
            raise ValueError(f"the weight {weight!r} of {adapter} is no number") from error
    return use


class SettingType(click.ParamType):
    """An option `FIELD=VALUE`; its value is (field, text)."""

    name = "FIELD=VALUE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        """Fails when the field is unknown or the text does not have its type."""
        name, equals, text = value.partition("=")
        if not equals:
            self.fail(f"{value!r} does not have the form FIELD=VALUE", param, ctx)
        try:
            set_hyperparameter(TrainingConfig(), name, text)
        except ValueError as error:
            self.fail(f"{name}: {error}", param, ctx)
        return name, text


class AdapterUseType(click.ParamType):
    """An option `NAME[@ALIAS|@VERSION][:WEIGHT]`; its value is an AdapterUse."""

    name = "NAME[@ALIAS|@VERSION][:WEIGHT]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> AdapterUse:
        """Fails when the text does not have the form."""
        try:
            return parse_adapter_use(value)
        except ValueError as error:
            self.fail(f"{error}", param, ctx)


class ConceptType(click.ParamType):
    """An option `dataset=NAME;KEY=VALUE;…`; its value is a Concept."""

    name = "KEY=VALUE;…"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Concept:
        """Fails when the text does not have the form."""
        try:
            return parse_concept(value)
        except ValueError as error:
            self.fail(f"{error}", param, ctx)


def _set_field(message: TrainingConfig | Concept, name: str, value: object, what: str) -> None:
    fields = message.DESCRIPTOR.fields_by_name
    if name not in fields:
        raise ValueError(f"is no {what}; {did_you_mean(name, fields)}there are {', '.join(sorted(fields))}")
    kind, allowed = _TYPES[fields[name].cpp_type]
    try:
        if kind is str and not isinstance(value, str):
            raise ValueError
        setattr(message, name, kind(str(value)))
    except ValueError as error:
        raise ValueError(f"is {value!r}; it takes {allowed}") from error
