"""Every RPC of the registry: no credential, no answer; no scope, no answer; no tenant reaches another one's."""

from __future__ import annotations

import time
import uuid
from dataclasses import replace

import grpc
import jwt
import pytest
from google.protobuf.descriptor import MethodDescriptor

from atelier.client import RegistryClient, TokenClient
from atelier.errors import UnauthenticatedError
from atelier.rpc.identity import TokenAuthority
from atelier.rpc.scopes import READER
from tests.harness import access
from tests.harness.calls import MAY_BE_EMPTY, OF_NO_TENANT, REGISTRY, USUAL, Ids, call, methods, request_for
from tests.harness.files import adapter_files, version
from tests.harness.registry import RegistryServer

METHODS = methods(REGISTRY)
LIST_ADAPTERS = REGISTRY[0].methods_by_name["ListAdapters"]
every_method = pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)


def test_every_registered_service_is_walked(registry_server: RegistryServer) -> None:
    access.check_all_are_walked(registry_server, METHODS)


@every_method
def test_call_without_a_credential_is_unauthenticated(
    registry_server: RegistryServer, method: MethodDescriptor
) -> None:
    access.check_credential_is_needed(registry_server, method)


@pytest.fixture(scope="module")
def owner() -> str:
    """The tenant that has what the requests are about. The walks change nothing of it."""
    return f"t-{uuid.uuid4().hex[:12]}"


@pytest.fixture(scope="module")
def ids(registry_server: RegistryServer, owner: str) -> Ids:
    """What the owner has: one of everything that has a name."""
    with registry_server.connect(owner) as connection:
        registry = RegistryClient(connection)
        registry.create_adapter(USUAL.adapter)
        registry.publish(USUAL.adapter, version(), adapter_files())
        registry.set_alias(USUAL.adapter, USUAL.alias, USUAL.version)
        TokenClient(connection).create(USUAL.token, [READER])
        upload = registry.create_upload(USUAL.adapter, version(), adapter_files(1))
    return replace(USUAL, upload=upload.name.rsplit("/", 1)[1])


@every_method
def test_too_weak_a_credential_is_denied_before_anything_is_looked_at(
    registry_server: RegistryServer, owner: str, ids: Ids, method: MethodDescriptor
) -> None:
    access.check_scope_is_needed(registry_server, method, owner, ids)


@pytest.mark.parametrize(
    "method", [each for each in METHODS if each.name not in OF_NO_TENANT], ids=lambda method: method.name
)
def test_name_of_another_tenant_is_denied_whether_or_not_it_exists(
    registry_server: RegistryServer, owner: str, ids: Ids, method: MethodDescriptor
) -> None:
    access.check_tenants_are_apart(registry_server, method, owner, ids)


@pytest.mark.parametrize("name", ["GetAdapter", "GetVersion", "GetAlias", "GetUpload", "RotateToken"])
def test_owner_finds_what_there_is(registry_server: RegistryServer, owner: str, ids: Ids, name: str) -> None:
    (method,) = (each for each in METHODS if each.name == name)
    access.check_owner_finds_what_there_is(registry_server, method, owner, ids)


@pytest.mark.parametrize(
    "method", [each for each in METHODS if each.name not in MAY_BE_EMPTY], ids=lambda method: method.name
)
def test_empty_request_is_an_invalid_argument(
    registry_server: RegistryServer, tenant: str, method: MethodDescriptor
) -> None:
    access.check_empty_request_is_refused(registry_server, method, tenant)


def test_same_names_of_two_tenants_are_two_adapters(
    registry: RegistryClient, registry_server: RegistryServer, tenant: str
) -> None:
    registry.create_adapter("fox", description="mine")
    with registry_server.connect(f"{tenant}-2") as connection:
        other = RegistryClient(connection)
        assert list(other.adapters()) == []
        other.create_adapter("fox", description="theirs")
    assert registry.adapter("fox").description == "mine"


def forged(**claims: object) -> str:
    """A token that somebody without the key has made."""
    usual = {"iss": "atelier", "sub": "x", "tenant": "acme", "scopes": ["READER"], "exp": time.time() + 60}
    return jwt.encode({**usual, **claims}, "k" * 64, algorithm="HS256")


def refusal(server: RegistryServer, header: str) -> UnauthenticatedError:
    """With what a call with this header is refused."""
    with grpc.insecure_channel(server.address) as channel, pytest.raises(UnauthenticatedError) as caught:
        call(channel, LIST_ADAPTERS, request_for(LIST_ADAPTERS, "-"), [("authorization", header)])
    return caught.value


@pytest.mark.parametrize(
    "header",
    [
        "",
        "Bearer",
        "Bearer x",
        "Basic dXNlcjpwYXNz",
        f"Bearer {forged()}",
        "Bearer " + jwt.encode({"tenant": "acme", "sub": "x", "iss": "atelier", "exp": 2**40}, "", algorithm="none"),
        "Bearer atl_" + "x" * 43,
        "Bearer atl_",
    ],
)
def test_credential_that_was_not_issued_is_refused(registry_server: RegistryServer, header: str) -> None:
    assert refusal(registry_server, header).reason in ("TOKEN_MISSING", "TOKEN_INVALID")


def test_expired_token_is_refused_as_such(registry_server: RegistryServer, authority: TokenAuthority) -> None:
    token = authority.issue(tenant="acme", subject="x", scopes=[READER], lifetime_seconds=-1)
    assert refusal(registry_server, f"Bearer {token}").reason == "TOKEN_EXPIRED"
