"""Words of the command line and of batch files as values of the contracts.

Names and types are checked here, against the contracts' own descriptors; ranges are the services' business.
"""

from __future__ import annotations

from typing import Any

import click
from google.protobuf.descriptor import FieldDescriptor

from atelier.pb.inference.v1.inference_pb2 import AdapterUse
from atelier.pb.trainer.v1.trainer_pb2 import TrainingConfig

_FIELDS = TrainingConfig.DESCRIPTOR.fields_by_name
_TYPES: dict[int, tuple[type, str]] = {
    FieldDescriptor.CPPTYPE_INT32: (int, "a whole number of 32 bits"),
    FieldDescriptor.CPPTYPE_INT64: (int, "a whole number of 64 bits"),
    FieldDescriptor.CPPTYPE_DOUBLE: (float, "a number"),
    FieldDescriptor.CPPTYPE_STRING: (str, "text"),
}


def set_hyperparameter(config: TrainingConfig, name: str, value: object) -> None:
    """Sets a field of `config`; text is taken as the field's type (YAML reads `1e-3` as text).

    Raises:
        ValueError: no such field, or a value that is not of its type.
    """
    if name not in _FIELDS:
        raise ValueError(f"is no hyperparameter; there are {', '.join(sorted(_FIELDS))}")
    kind, allowed = _TYPES[_FIELDS[name].cpp_type]
    try:
        setattr(config, name, kind(str(value)))
    except ValueError as error:
        raise ValueError(f"is {value!r}; it takes {allowed}") from error


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
