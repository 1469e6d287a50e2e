"""Base models that the registry knows: what every published adapter is compared with.

A base model is its digest, and belongs to no tenant. What is known of a digest never changes: whoever tells of other
layers under the same digest is refused, and another name for it changes nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from google.protobuf.json_format import MessageToDict, ParseDict
from sqlalchemy import select, tuple_
from sqlalchemy.orm import Session

from atelier.diffusion.base_layers import LAYOUTS
from atelier.errors import AlreadyExistsError, FailedPreconditionError, InvalidArgumentError, NotFoundError
from atelier.pb.common.v1.common_pb2 import BaseModel
from atelier.pb.registry.v1 import base_models_pb2 as pb
from atelier.rpc.names import check_text, shown
from atelier.rpc.pages import parse_page
from atelier.storage.database import to_timestamp, utc_now
from services.registry.tables import BaseModelRow

MAX_NAME_CHARACTERS = 200
MAX_LAYERS = 20_000
MAX_SIDE = 2**31 - 1
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_NAME = re.compile(r"baseModels/([0-9a-f]{64})")
_LAYER = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*")
_MAX_LAYER_CHARACTERS = 200


@dataclass(frozen=True, kw_only=True, slots=True)
class KnownBase:
    """A base model that the registry was told of."""

    family: str
    shapes: Mapping[str, Mapping[str, tuple[int, ...]]]
    """Of the weights, by component and by the layer's name in it."""
    embedding_sizes: Mapping[str, int]
    """By component; 0 for one without word embeddings."""


def check_digest(digest: str, field: str) -> None:
    """Refuses what cannot be a base model's digest."""
    if not _DIGEST.fullmatch(digest):
        raise InvalidArgumentError(
            field, f"is {shown(digest)}; it must be `sha256:` and 64 lower-case hexadecimal digits"
        )


def find(session: Session, digest: str, field: str) -> KnownBase:
    """What is known of a base model. FailedPreconditionError, which names `field`, when nothing is."""
    row = session.get(BaseModelRow, digest)
    if row is None:
        raise FailedPreconditionError(
            f"{field}: the registry does not know the base model {shown(digest)}; "
            "tell it with `atelier bases register NAME=PATH`",
            reason="BASE_MODEL_UNKNOWN",
            metadata={"digest": digest},
        )
    components = _components(row)
    return KnownBase(
        family=row.family,
        shapes={each.component: _shapes(each) for each in components},
        embedding_sizes={each.component: each.embedding_size for each in components},
    )


def register(session: Session, request: pb.RegisterBaseModelRequest) -> pb.BaseModelDescription:
    """Tells of a base model; what is known already is answered again, under the name that it has."""
    told = request.base_model
    _check(told)
    row = session.get(BaseModelRow, told.base_model.digest)
    if row is None:
        row = BaseModelRow(
            digest=told.base_model.digest,
            model=told.base_model.model,
            family=told.family,
            components=[MessageToDict(each) for each in told.components],
            create_time=utc_now(),
        )
        session.add(row)
    elif row.family != told.family or _by_name(_components(row)) != _by_name(told.components):
        raise AlreadyExistsError(
            f"base_model.components: {_name(row)} is known with other layers; files that differ have another digest",
            reason="BASE_MODEL_DIFFERS",
            metadata={"base_model": _name(row)},
        )
    return _to_message(row)


def get(session: Session, request: pb.GetBaseModelRequest) -> pb.BaseModelDescription:
    """One base model."""
    match = _NAME.fullmatch(request.name)
    if match is None:
        raise InvalidArgumentError("name", f"is {shown(request.name)}; it must have the form baseModels/{{base_model}}")
    row = session.get(BaseModelRow, f"sha256:{match[1]}")
    if row is None:
        raise NotFoundError(
            f"there is no {request.name}", reason="BASE_MODEL_NOT_FOUND", metadata={"base_model": request.name}
        )
    return _to_message(row)


def list_page(session: Session, request: pb.ListBaseModelsRequest) -> pb.ListBaseModelsResponse:
    """A page of the base models by name and digest, without their layers."""
    page = parse_page(request.page_size, request.page_token, "baseModels")
    columns = (BaseModelRow.model, BaseModelRow.digest)
    query = select(BaseModelRow).order_by(*columns).limit(page.size + 1)
    if page.after:
        digest, _, model = page.after.partition(" ")
        query = query.where(tuple_(*columns) > tuple_(model, digest))
    rows, token = page.cut(session.scalars(query).all(), key=lambda row: f"{row.digest} {row.model}")
    summaries = [_to_message(row) for row in rows]
    for summary in summaries:
        for component in summary.components:
            component.ClearField("layers")
    return pb.ListBaseModelsResponse(base_models=summaries, next_page_token=token)


def _to_message(row: BaseModelRow) -> pb.BaseModelDescription:
    return pb.BaseModelDescription(
        name=_name(row),
        base_model=BaseModel(model=row.model, digest=row.digest),
        family=row.family,
        components=_components(row),
        create_time=to_timestamp(row.create_time),
    )


def _name(row: BaseModelRow) -> str:
    return f"baseModels/{row.digest.removeprefix('sha256:')}"


def _components(row: BaseModelRow) -> list[pb.Component]:
    return [ParseDict(each, pb.Component()) for each in row.components]


def _by_name(components: Sequence[pb.Component]) -> dict[str, object]:
    """What is compared: the order of components and of layers says nothing."""
    return {each.component: (each.embedding_size, _shapes(each)) for each in components}


def _shapes(component: pb.Component) -> dict[str, tuple[int, ...]]:
    return {layer.name: tuple(layer.weight_shape) for layer in component.layers}


def _check(told: pb.BaseModelDescription) -> None:
    check_text(told.base_model.model, "base_model.base_model.model", max_characters=MAX_NAME_CHARACTERS, required=True)
    if not told.base_model.model.isprintable():
        _refuse("base_model.model", f"is {shown(told.base_model.model)}; printable characters are allowed")
    check_digest(told.base_model.digest, "base_model.base_model.digest")
    if told.family not in LAYOUTS:
        _refuse("family", f"is {shown(told.family)}; allowed are {', '.join(LAYOUTS)}")
    wanted, names = LAYOUTS[told.family].components, sorted(each.component for each in told.components)
    if names != sorted(wanted):
        _refuse("components", f"are {shown(', '.join(names))}; those of {told.family} are {', '.join(wanted)}")
    for index, component in enumerate(told.components):
        _check_component(component, f"components[{index}]")


def _check_component(component: pb.Component, field: str) -> None:
    if component.embedding_size < 0:
        _refuse(f"{field}.embedding_size", f"is {component.embedding_size}; it must be 0 or more")
    names = {layer.name for layer in component.layers}
    if not 1 <= len(component.layers) <= MAX_LAYERS or len(names) != len(component.layers):
        _refuse(f"{field}.layers", f"must be 1 to {MAX_LAYERS} of different names")
    for index, layer in enumerate(component.layers):
        if len(layer.name) > _MAX_LAYER_CHARACTERS or not _LAYER.fullmatch(layer.name):
            _refuse(
                f"{field}.layers[{index}].name",
                f"is {shown(layer.name)}; allowed are up to {_MAX_LAYER_CHARACTERS} letters, digits, _ and single dots",
            )
        shape = layer.weight_shape
        if len(shape) not in (2, 4) or not all(1 <= side <= MAX_SIDE for side in shape):
            _refuse(
                f"{field}.layers[{index}].weight_shape",
                f"is {list(shape)[:8]}; it must be 2 or 4 positive numbers: out, in, and a convolution's kernel",
            )


def _refuse(field: str, description: str) -> None:
    raise InvalidArgumentError(f"base_model.{field}", description)
