"""Credentials: the services' own tokens and their key, scopes, and which verifier is asked."""

from __future__ import annotations

import asyncio
import stat
import time
from collections.abc import Callable
from pathlib import Path

import grpc
import jwt
import pytest

from atelier.client import RegistryClient
from atelier.errors import PermissionDeniedError, UnauthenticatedError
from atelier.pb.common.v1.common_pb2 import SCOPE_UNSPECIFIED, Scope
from atelier.pb.registry.v1 import registry_pb2 as pb
from atelier.pb.registry.v1.registry_pb2_grpc import RegistryServiceStub
from atelier.rpc.call import current_call
from atelier.rpc.identity import MIN_KEY_BYTES, Authenticator, Identity, TokenAuthority, create_key_file
from atelier.rpc.scopes import (
    ADMIN,
    OPERATOR,
    PUBLISHER,
    READER,
    SCOPE_NAMES,
    TRAINER,
    check_scope,
    required_scope,
    scope_name,
    scope_named,
    with_included,
)
from tests.harness.rpc import ScaffoldServer

KEY = b"k" * 64
AUTHORITY = TokenAuthority(KEY)
ALL = frozenset({READER, TRAINER, PUBLISHER, ADMIN, OPERATOR})


def signed(key: bytes = KEY, algorithm: str = "HS256", **claims: object) -> str:
    """A token with these claims beside those of a valid one; None takes a claim away."""
    usual = {"iss": "atelier", "sub": "ann", "tenant": "acme", "scopes": ["READER"], "exp": time.time() + 60}
    every = {name: value for name, value in {**usual, **claims}.items() if value is not None}
    return jwt.encode(every, key, algorithm=algorithm)


def issue(tenant: str = "acme") -> str:
    """A token of Ann's, to read."""
    return AUTHORITY.issue(tenant=tenant, subject="ann", scopes=[READER], lifetime_seconds=60)


ANN = Identity(tenant="acme", subject="ann", scopes=frozenset({READER}))


def authenticate(authenticator: Authenticator, header: str | None) -> Identity:
    """Whom a header stands for."""
    return asyncio.run(authenticator.authenticate(header))


def test_issued_token_stands_for_its_tenant_subject_and_scopes() -> None:
    assert AUTHORITY.verify(issue()) == ANN
    token = AUTHORITY.issue(tenant="acme", subject="ann", scopes=ALL, lifetime_seconds=60)
    assert AUTHORITY.verify(token).scopes == ALL


@pytest.mark.parametrize(
    "token",
    [
        *("", "x", "a.b.c", signed(key=b"o" * 64), signed(algorithm="HS512"), signed(iss="somebody")),
        *(signed(tenant=None), signed(tenant="-"), signed(tenant="A/b"), signed(tenant=7), signed(sub=None)),
        *(signed(sub=""), signed(sub="x" * 256), signed(sub="a\nb")),
        *(signed(exp=None), signed(exp=time.time() - 5)),
        *(signed(scopes=None), signed(scopes="READER"), signed(scopes=["reader"]), signed(scopes=[1])),
        *(signed(scopes=7), signed(scopes=["UNSPECIFIED"])),
    ],
)
def test_token_that_the_authority_would_not_issue_is_refused(token: str) -> None:
    with pytest.raises(UnauthenticatedError):
        AUTHORITY.verify(token)


@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer ", "Basic x", "bearer"])
def test_header_of_another_form_is_refused(header: str | None) -> None:
    with pytest.raises(UnauthenticatedError):
        authenticate(Authenticator(AUTHORITY), header)


class Answering:
    """A verifier that says its name."""

    def __init__(self, name: str) -> None:
        self._identity = Identity(tenant=name, subject="x", scopes=frozenset())

    async def verify(self, token: str) -> Identity:
        return self._identity


def test_form_of_a_credential_says_who_verifies_it() -> None:
    authenticator = Authenticator(AUTHORITY, Answering("random"), Answering("oidc"))
    tokens = {
        "Bearer atl_xyz": "random",
        f"bearer  {issue()} ": "acme",
        f"Bearer {signed(iss='https://login.example')}": "oidc",
        f"Bearer {signed(iss=None)}": "oidc",
    }
    assert {token: authenticate(authenticator, token).tenant for token in tokens} == tokens
    with pytest.raises(UnauthenticatedError):
        authenticate(authenticator, "Bearer no.token")


def test_without_other_verifiers_the_authority_refuses() -> None:
    for token in ("atl_xyz", signed(iss="https://login.example")):
        with pytest.raises(UnauthenticatedError):
            authenticate(Authenticator(AUTHORITY), f"Bearer {token}")


@pytest.mark.parametrize("tenant", ["", "-", "Acme", "a/b", "a" * 64])
def test_no_token_is_issued_for_an_impossible_tenant(tenant: str) -> None:
    with pytest.raises(ValueError, match="tenant"):
        issue(tenant)


def test_clock_of_who_issues_may_be_ahead() -> None:
    assert AUTHORITY.verify(signed(iat=time.time() + 5)) == ANN


def test_short_key_is_refused() -> None:
    with pytest.raises(ValueError, match="at least"):
        TokenAuthority(b"k" * (MIN_KEY_BYTES - 1))


def test_key_file_is_private_and_made_once(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "signing.key"
    create_key_file(path)
    content = path.read_bytes()
    create_key_file(path)
    assert path.read_bytes() == content
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    authority = TokenAuthority.from_file(path)
    token = authority.issue(tenant="acme", subject="ann", scopes=[READER], lifetime_seconds=60)
    assert TokenAuthority.from_file(path).verify(token) == ANN


@pytest.mark.parametrize(
    ("held", "allowed"),
    [
        (READER, {READER}),
        (TRAINER, {TRAINER, READER}),
        (PUBLISHER, {PUBLISHER, READER}),
        (ADMIN, {ADMIN, TRAINER, PUBLISHER, READER}),
        (OPERATOR, {OPERATOR}),
        (99, set()),
    ],
)
def test_scope_allows_what_it_includes_and_nothing_else(held: Scope, allowed: set[Scope]) -> None:
    assert with_included([held]) == allowed
    for needed in ALL:
        if needed in allowed:
            check_scope([held], needed)
        else:
            with pytest.raises(PermissionDeniedError) as caught:
                check_scope([held], needed)
            assert caught.value.reason == "SCOPE_MISSING"
            assert scope_name(needed) in caught.value.message


def test_method_that_asks_for_no_scope_is_closed_to_all_of_them() -> None:
    assert required_scope("grpc.health.v1.Health.Check") == SCOPE_UNSPECIFIED
    with pytest.raises(PermissionDeniedError):
        check_scope(ALL, SCOPE_UNSPECIFIED)


def test_scopes_have_names() -> None:
    assert {scope_named(name) for name in SCOPE_NAMES} == ALL
    for name in ("", "reader", "SCOPE_READER", "UNSPECIFIED"):
        with pytest.raises(ValueError, match="no scope"):
            scope_named(name)


def test_handlers_know_what_the_credential_allows(serve: Callable[..., ScaffoldServer]) -> None:
    seen = []

    def handler(request: object, context: object) -> pb.Tenant:
        seen.append(current_call().scopes)
        return pb.Tenant()

    with serve({"GetTenant": handler}).connect("acme", TRAINER, OPERATOR) as connection:
        RegistryClient(connection).tenant()
    assert seen == [{TRAINER, OPERATOR}]


def test_service_that_the_scaffold_was_not_told_of_is_not_served(serve: Callable[..., ScaffoldServer]) -> None:
    server = serve({"GetTenant": lambda request, context: pb.Tenant()}, services=[])
    with server.connect("acme", *ALL) as connection, pytest.raises(grpc.RpcError) as caught:
        RegistryServiceStub(connection.channel).GetTenant(pb.GetTenantRequest())
    assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED
