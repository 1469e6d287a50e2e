"""Base models over the real process: told by operators, known to everybody, and never other than they were told."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from atelier.client import BaseModelClient, RegistryClient
from atelier.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    PermissionDeniedError,
)
from atelier.pb.common.v1.common_pb2 import BaseModel
from atelier.pb.registry.v1 import base_models_pb2 as pb
from atelier.pb.registry.v1.base_models_pb2_grpc import BaseModelServiceStub
from atelier.rpc.scopes import ADMIN, OPERATOR, READER
from atelier.rpc.status import translated_errors
from tests.harness.files import adapter_files, fake_base, version
from tests.harness.registry import RegistryServer


@pytest.fixture
def operator(registry_server: RegistryServer) -> Iterator[BaseModelClient]:
    """Base models, for an operator."""
    with registry_server.connect("operators", OPERATOR) as connection:
        yield BaseModelClient(connection)


@pytest.fixture
def reader(registry_server: RegistryServer, tenant: str) -> Iterator[BaseModelClient]:
    """Base models, for a tenant that only reads."""
    with registry_server.connect(tenant, READER) as connection:
        yield BaseModelClient(connection)


def other_base(name: str = "other-sd") -> pb.BaseModelDescription:
    """The fake base under a digest of its own."""
    base = fake_base()
    base.base_model.CopyFrom(BaseModel(model=name, digest=f"sha256:{secrets.token_hex(32)}"))
    return base


def test_what_an_operator_tells_is_known_to_every_tenant(operator: BaseModelClient, reader: BaseModelClient) -> None:
    told = other_base()
    registered = operator.register(told)
    assert registered.name == f"baseModels/{told.base_model.digest.removeprefix('sha256:')}"
    assert registered.HasField("create_time")
    assert reader.base_model(told.base_model.digest) == registered
    for field in ("base_model", "family", "components"):
        assert getattr(registered, field) == getattr(told, field)


def test_telling_again_changes_nothing(operator: BaseModelClient) -> None:
    told = other_base()
    registered = operator.register(told)
    told.base_model.model = "a-new-name"
    told.components.reverse()
    assert operator.register(told) == registered


def test_the_same_digest_with_other_layers_is_refused(operator: BaseModelClient, reader: BaseModelClient) -> None:
    told = other_base()
    registered = operator.register(told)
    told.components[0].layers[0].weight_shape[0] += 1
    with pytest.raises(AlreadyExistsError) as caught:
        operator.register(told)
    assert caught.value.reason == "BASE_MODEL_DIFFERS"
    assert reader.base_model(told.base_model.digest) == registered


def test_many_who_tell_at_once_are_answered_alike(operator: BaseModelClient) -> None:
    told = other_base()
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(operator.register, [told] * 8))
    assert all(answer == answers[0] for answer in answers)


def test_telling_takes_the_scope_of_operators(registry_server: RegistryServer, tenant: str) -> None:
    with registry_server.connect(tenant, ADMIN) as connection, pytest.raises(PermissionDeniedError) as caught:
        BaseModelClient(connection).register(other_base())
    assert caught.value.reason == "SCOPE_MISSING"


def test_validate_only_keeps_nothing(registry_server: RegistryServer, reader: BaseModelClient) -> None:
    told = other_base()
    with registry_server.connect("operators", OPERATOR) as connection:
        stub = BaseModelServiceStub(connection.channel)
        answer = stub.RegisterBaseModel(pb.RegisterBaseModelRequest(base_model=told, validate_only=True))
    assert answer.base_model == told.base_model
    with pytest.raises(NotFoundError) as caught:
        reader.base_model(told.base_model.digest)
    assert caught.value.reason == "BASE_MODEL_NOT_FOUND"


def _without_layers(base: pb.BaseModelDescription) -> None:
    del base.components[0].layers[:]


def _twice(base: pb.BaseModelDescription) -> None:
    base.components[0].layers.append(base.components[0].layers[0])


def _set(path: str, value: object) -> Callable[[pb.BaseModelDescription], None]:
    def change(base: pb.BaseModelDescription) -> None:
        *steps, last = path.split(".")
        target: object = base
        for step in steps:
            target = target[int(step)] if step.isdecimal() else getattr(target, step)  # type: ignore[index]
        setattr(target, last, value)

    return change


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (_set("base_model.model", ""), "base_model.base_model.model"),
        (_set("base_model.model", "x" * 201), "base_model.base_model.model"),
        (_set("base_model.model", "emoji\u200b-sd"), "base_model.base_model.model"),
        (_set("base_model.model", "emoji\x1b[2K"), "base_model.base_model.model"),
        (_set("base_model.digest", "sha256:ab"), "base_model.base_model.digest"),
        (_set("family", "flux"), "base_model.family"),
        (_set("family", "stable-cascade"), "base_model.components"),
        (_set("components.1.component", "unet"), "base_model.components"),
        (_set("components.0.embedding_size", -1), "base_model.components[0].embedding_size"),
        (_without_layers, "base_model.components[0].layers"),
        (_twice, "base_model.components[0].layers"),
        (_set("components.0.layers.2.name", "../x"), "base_model.components[0].layers[2].name"),
        (_set("components.0.layers.2.name", "a..b"), "base_model.components[0].layers[2].name"),
        (
            lambda base: base.components[0].layers[2].weight_shape.append(1),
            "base_model.components[0].layers[2].weight_shape",
        ),
        (
            lambda base: base.components[0].layers[2].weight_shape.__setitem__(0, 0),
            "base_model.components[0].layers[2].weight_shape",
        ),
    ],
)
def test_what_is_wrong_is_named(
    operator: BaseModelClient, change: Callable[[pb.BaseModelDescription], None], field: str
) -> None:
    told = other_base()
    change(told)
    with pytest.raises(InvalidArgumentError) as caught:
        operator.register(told)
    assert caught.value.violations[0].field == field


@pytest.mark.parametrize("name", ["", "baseModels/", "baseModels/xy", "baseModels/" + "AB" * 32, "baseModels/../x"])
def test_names_of_another_form_are_refused(registry_server: RegistryServer, tenant: str, name: str) -> None:
    with registry_server.connect(tenant) as connection, pytest.raises(InvalidArgumentError), translated_errors():
        BaseModelServiceStub(connection.channel).GetBaseModel(pb.GetBaseModelRequest(name=name))


def test_they_are_listed_by_name_a_page_at_a_time_without_layers(
    operator: BaseModelClient, registry_server: RegistryServer, tenant: str
) -> None:
    prefix = secrets.token_hex(4)
    told = [operator.register(other_base(f"{prefix}-{name}")) for name in ("b", "a", "b", "c")]
    with registry_server.connect(tenant) as connection:
        stub, found = BaseModelServiceStub(connection.channel), []
        request = pb.ListBaseModelsRequest(page_size=1)
        while True:
            page = stub.ListBaseModels(request)
            assert len(page.base_models) <= 1
            found += page.base_models
            if not page.next_page_token:
                break
            request.page_token = page.next_page_token
    own = [each for each in found if each.base_model.model.startswith(prefix)]
    wanted = sorted(told, key=lambda each: (each.base_model.model, each.base_model.digest))
    assert [each.name for each in own] == [each.name for each in wanted]
    assert all(not component.layers for each in own for component in each.components)
    assert [component.component for component in own[0].components] == ["unet", "text_encoder"]


def test_nothing_is_published_for_an_unknown_base_model(registry: RegistryClient) -> None:
    registry.create_adapter("fox")
    unknown = BaseModel(model="emoji-sd", digest="sha256:" + "00" * 32)
    with pytest.raises(FailedPreconditionError) as caught:
        registry.publish("fox", version(base_model=unknown), adapter_files())
    assert caught.value.reason == "BASE_MODEL_UNKNOWN"
    assert caught.value.metadata["digest"] == unknown.digest
    assert "atelier bases register" in caught.value.message
