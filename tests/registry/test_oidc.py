"""A registry whose operator trusts an identity provider: what the provider's tokens open, and what they never open."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from atelier.client import Connection, MaintenanceClient, RegistryClient
from atelier.errors import PermissionDeniedError, UnauthenticatedError
from atelier.rpc.scopes import READER
from tests.harness.identity_provider import AUDIENCE, IdentityProvider
from tests.harness.registry import RegistryServer


@pytest.fixture(scope="module")
def provider() -> Iterator[IdentityProvider]:
    """The provider that is trusted."""
    provider = IdentityProvider()
    yield provider
    provider.close()


@pytest.fixture(scope="module")
def server(
    provider: IdentityProvider,
    registry_server: RegistryServer,
    signing_key_file: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[RegistryServer]:
    """The registry that trusts it."""
    options = {"oidc-issuer": provider.issuer, "oidc-audience": AUDIENCE}
    server = RegistryServer(tmp_path_factory.mktemp("oidc"), registry_server.s3, signing_key_file, options)
    server.start()
    yield server
    server.stop()


def test_token_opens_its_tenant_to_its_scopes(server: RegistryServer, provider: IdentityProvider, tenant: str) -> None:
    with Connection(server.address, provider.token(tenant=tenant, scope="openid atelier:publisher")) as connection:
        RegistryClient(connection).create_adapter("fox")
    with Connection(server.address, provider.token(tenant=tenant, scope="reader")) as connection:
        registry = RegistryClient(connection)
        assert [adapter.name for adapter in registry.adapters()] == [f"tenants/{tenant}/adapters/fox"]
        with pytest.raises(PermissionDeniedError) as caught:
            registry.create_adapter("owl")
    assert caught.value.metadata == {"scope": "PUBLISHER"}


def test_the_services_own_tokens_are_as_good_as_before(server: RegistryServer, tenant: str) -> None:
    with server.connect(tenant, READER) as connection:
        assert RegistryClient(connection).tenant().name == f"tenants/{tenant}"


@pytest.mark.parametrize(
    ("claims", "reason"),
    [({"aud": "another"}, "TOKEN_INVALID"), ({"tenant": None}, "TOKEN_INVALID"), ({"exp": 1}, "TOKEN_EXPIRED")],
)
def test_token_that_is_not_for_this_installation_is_refused(
    server: RegistryServer, provider: IdentityProvider, claims: dict[str, Any], reason: str
) -> None:
    token = provider.token(**claims)
    with Connection(server.address, token) as connection, pytest.raises(UnauthenticatedError) as caught:
        RegistryClient(connection).tenant()
    assert caught.value.reason == reason


def test_token_of_another_provider_is_refused(server: RegistryServer) -> None:
    stranger = IdentityProvider()
    stranger.close()
    with Connection(server.address, stranger.token()) as connection, pytest.raises(UnauthenticatedError):
        RegistryClient(connection).tenant()


@pytest.mark.parametrize("scope", ["operator", "atelier:operator", ["OPERATOR", "admin"]])
def test_operator_is_never_what_a_provider_says(
    server: RegistryServer, provider: IdentityProvider, scope: object
) -> None:
    token = provider.token(scope=scope)
    with Connection(server.address, token) as connection, pytest.raises(PermissionDeniedError) as caught:
        MaintenanceClient(connection).collect_garbage(validate_only=True)
    assert caught.value.metadata == {"scope": "OPERATOR"}
