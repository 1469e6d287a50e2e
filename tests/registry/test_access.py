"""Every RPC of the service: no credential, no answer; no tenant reaches another one's resources."""

from __future__ import annotations

import time
from typing import Any

import grpc
import jwt
import pytest

from atelier.client import RegistryClient
from atelier.errors import InvalidArgumentError, PermissionDeniedError, UnauthenticatedError
from atelier.pb.registry.v1 import registry_pb2 as pb
from atelier.pb.registry.v1.registry_pb2_grpc import RegistryServiceStub
from atelier.rpc.identity import TokenAuthority
from tests.harness.calls import call
from tests.harness.files import adapter_files, version
from tests.harness.registry import RegistryServer
from tests.registry.uploads import declared

SERVICE = pb.DESCRIPTOR.services_by_name["RegistryService"]
METHOD_NAMES = list(SERVICE.methods_by_name)


def request_for(method: str, tenant: str) -> Any:
    """A well-formed request about a tenant's adapter `fox`."""
    parent = f"tenants/{tenant}"
    fox = f"{parent}/adapters/fox"
    spec = pb.PublishVersionSpec(parent=fox, version=version(files=declared(adapter_files())))
    requests = [
        pb.GetTenantRequest(name=parent),
        pb.CreateAdapterRequest(parent=parent, adapter_id="fox"),
        pb.GetAdapterRequest(name=fox),
        pb.ListAdaptersRequest(parent=parent),
        pb.PublishVersionRequest(spec=spec),
        pb.GetVersionRequest(name=f"{fox}/versions/1"),
        pb.ListVersionsRequest(parent=fox),
        pb.ResolveVersionRequest(adapter=fox),
        pb.DownloadFileRequest(version=f"{fox}/versions/1", path="README.md"),
        pb.UpdateAliasRequest(alias=pb.Alias(name=f"{fox}/aliases/prod", version=f"{fox}/versions/1")),
        pb.GetAliasRequest(name=f"{fox}/aliases/prod"),
        pb.ListAliasesRequest(parent=fox),
    ]
    return next(request for request in requests if request.DESCRIPTOR.name == f"{method}Request")


def list_adapters(channel: grpc.Channel, authorization: str) -> None:
    """Asks for the adapters with this header."""
    request = request_for("ListAdapters", "-")
    call(RegistryServiceStub(channel), SERVICE, "ListAdapters", request, [("authorization", authorization)])


def forged(**claims: object) -> str:
    """A token that somebody without the key has made."""
    usual = {"iss": "atelier", "sub": "x", "tenant": "acme", "exp": time.time() + 60}
    return jwt.encode({**usual, **claims}, "k" * 64, algorithm="HS256")


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_call_without_a_token_is_unauthenticated(registry_server: RegistryServer, method: str) -> None:
    with grpc.insecure_channel(registry_server.address) as channel, pytest.raises(UnauthenticatedError) as caught:
        call(RegistryServiceStub(channel), SERVICE, method, request_for(method, "-"))
    assert caught.value.reason == "TOKEN_MISSING"


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_name_of_another_tenant_is_denied_whether_or_not_it_exists(
    registry_server: RegistryServer, registry: RegistryClient, tenant: str, method: str
) -> None:
    registry.create_adapter("fox")
    registry.publish("fox", version(), adapter_files())
    registry.set_alias("fox", "prod", "1")
    with registry_server.connect("stranger") as connection:
        for owner in (tenant, "nobody"):
            with pytest.raises(PermissionDeniedError):
                call(RegistryServiceStub(connection.channel), SERVICE, method, request_for(method, owner))


def test_same_names_of_two_tenants_are_two_adapters(
    registry: RegistryClient, registry_server: RegistryServer, tenant: str
) -> None:
    registry.create_adapter("fox", description="mine")
    with registry_server.connect(f"{tenant}-2") as connection:
        other = RegistryClient(connection)
        assert list(other.adapters()) == []
        other.create_adapter("fox", description="theirs")
    assert registry.adapter("fox").description == "mine"


@pytest.mark.parametrize(
    "header",
    [
        "",
        "Bearer",
        "Bearer x",
        "Basic dXNlcjpwYXNz",
        f"Bearer {forged()}",
        "Bearer " + jwt.encode({"tenant": "acme", "sub": "x", "iss": "atelier", "exp": 2**40}, "", algorithm="none"),
    ],
)
def test_credential_that_was_not_issued_is_refused(registry_server: RegistryServer, header: str) -> None:
    with grpc.insecure_channel(registry_server.address) as channel, pytest.raises(UnauthenticatedError):
        call(
            RegistryServiceStub(channel),
            SERVICE,
            "ListAdapters",
            request_for("ListAdapters", "-"),
            [("authorization", header)],
        )


def test_expired_token_is_refused_as_such(registry_server: RegistryServer, authority: TokenAuthority) -> None:
    token = authority.issue(tenant="acme", subject="x", lifetime_seconds=-1)
    with grpc.insecure_channel(registry_server.address) as channel, pytest.raises(UnauthenticatedError) as caught:
        call(
            RegistryServiceStub(channel),
            SERVICE,
            "ListAdapters",
            request_for("ListAdapters", "-"),
            [("authorization", f"Bearer {token}")],
        )
    assert caught.value.reason == "TOKEN_EXPIRED"


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_empty_request_is_an_invalid_argument(
    registry_server: RegistryServer, registry_stub: RegistryServiceStub, tenant: str, method: str
) -> None:
    empty = type(request_for(method, tenant))()
    with registry_server.connect(tenant) as connection, pytest.raises(InvalidArgumentError) as caught:
        call(RegistryServiceStub(connection.channel), SERVICE, method, empty)
    assert caught.value.violations[0].field
