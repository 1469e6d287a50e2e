"""Bearer tokens at the registry: made, used, rotated, revoked, verified for others. Their secrets stay secret."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from atelier.client import Connection, RegistryClient, TokenClient
from atelier.errors import (
    AbortedError,
    AlreadyExistsError,
    AtelierError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    PermissionDeniedError,
    UnauthenticatedError,
)
from atelier.local.process import wait_until
from atelier.pb.registry.v1 import tokens_pb2 as pb
from atelier.pb.registry.v1.tokens_pb2_grpc import TokenServiceStub
from atelier.rpc.scopes import ADMIN, OPERATOR, PUBLISHER, READER, TRAINER
from atelier.rpc.status import translated_errors
from tests.harness.registry import RegistryServer

REMEMBERED_SECONDS = 20
"""More than a service remembers an answer, on a busy machine."""


@pytest.fixture
def tokens(registry_connection: Connection) -> TokenClient:
    """The test's tenant, as its administrator."""
    return TokenClient(registry_connection)


@pytest.fixture
def stub(registry_connection: Connection) -> TokenServiceStub:
    """The same, for requests that the SDK would not send."""
    return TokenServiceStub(registry_connection.channel)


@pytest.fixture
def operator(registry_server: RegistryServer, tenant: str) -> Iterator[Connection]:
    """The test's tenant, as its administrator and operator."""
    with registry_server.connect(tenant, ADMIN, OPERATOR) as connection:
        yield connection


def use(server: RegistryServer, secret: str) -> str:
    """The tenant that a secret speaks for."""
    with Connection(server.address, secret) as connection:
        return RegistryClient(connection).tenant().name


def wait_for_refusal(server: RegistryServer, secret: str) -> None:
    """Returns when a secret is good no more."""

    def refused() -> bool:
        try:
            use(server, secret)
        except UnauthenticatedError:
            return True
        return False

    wait_until(refused, timeout_seconds=REMEMBERED_SECONDS, what="the secret is refused")


def create(stub: TokenServiceStub, **fields: Any) -> pb.CreateTokenResponse:
    """Makes a token `ci` that reads; `fields` replace what its request says."""
    usual = {"parent": "tenants/-", "token_id": "ci", "token": pb.Token(scopes=[READER])}
    with translated_errors():
        return stub.CreateToken(pb.CreateTokenRequest(**{**usual, **fields}))


def test_token_speaks_for_its_tenant_with_its_scopes(
    registry_server: RegistryServer, tokens: TokenClient, tenant: str
) -> None:
    made = tokens.create("ci", [READER], description="for the pipeline")
    assert re.fullmatch(r"atl_[A-Za-z0-9_-]{43}", made.secret)
    assert use(registry_server, made.secret) == f"tenants/{tenant}"
    with Connection(registry_server.address, made.secret) as connection:
        assert list(RegistryClient(connection).adapters()) == []
        with pytest.raises(PermissionDeniedError) as caught:
            RegistryClient(connection).create_adapter("fox")
    assert caught.value.reason == "SCOPE_MISSING"


def test_list_tells_everything_but_the_secret(tokens: TokenClient, tenant: str) -> None:
    made = {name: tokens.create(name, [READER, PUBLISHER], description=f"for {name}") for name in ("b", "a")}
    listed = list(tokens.tokens())
    assert [token.name for token in listed] == [f"tenants/{tenant}/tokens/{name}" for name in ("a", "b")]
    assert listed == [made["a"].token, made["b"].token]
    assert list(listed[0].scopes) == [PUBLISHER, READER]
    assert all(each.secret not in str(listed) for each in made.values())


def test_list_comes_in_pages(tokens: TokenClient, stub: TokenServiceStub) -> None:
    for name in ("a", "b", "c"):
        tokens.create(name, [READER])
    first = stub.ListTokens(pb.ListTokensRequest(parent="tenants/-", page_size=2))
    rest = stub.ListTokens(pb.ListTokensRequest(parent="tenants/-", page_size=2, page_token=first.next_page_token))
    assert [token.name[-1] for token in [*first.tokens, *rest.tokens]] == ["a", "b", "c"]
    assert rest.next_page_token == ""


def test_token_works_for_ninety_days_or_as_long_as_it_was_asked_for(tokens: TokenClient) -> None:
    now = datetime.now(UTC)
    for name, lifetime, days in (("usual", None, 90), ("short", timedelta(days=1), 1), ("long", timedelta(366), 366)):
        end = tokens.create(name, [READER], lifetime=lifetime).token.expire_time.ToDatetime(tzinfo=UTC)
        assert timedelta(days=days) - timedelta(seconds=2) <= end - now <= timedelta(days=days, minutes=1)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"parent": ""}, "parent"),
        ({"token_id": ""}, "token_id"),
        ({"token_id": "CI"}, "token_id"),
        ({"token": None}, "token.scopes"),
        ({"token": {"scopes": [0]}}, "token.scopes"),
        ({"token": {"scopes": [1, 99]}}, "token.scopes"),
        ({"token": {"scopes": [1], "description": "x" * 201}}, "token.description"),
        ({"token": {"scopes": [1], "expire_time": {"seconds": 1}}}, "token.expire_time"),
        ({"token": {"scopes": [1], "expire_time": {"seconds": 2**40}}}, "token.expire_time"),
        ({"token": {"scopes": [1], "expire_time": {"seconds": -(2**62)}}}, "token.expire_time"),
    ],
)
def test_token_that_cannot_be_is_refused(
    stub: TokenServiceStub, tokens: TokenClient, fields: dict[str, Any], field: str
) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        create(stub, **fields)
    assert caught.value.violations[0].field == field
    assert list(tokens.tokens()) == []


def test_taken_id_is_refused_and_the_token_stays(
    registry_server: RegistryServer, tokens: TokenClient, tenant: str
) -> None:
    made = tokens.create("ci", [READER])
    with pytest.raises(AlreadyExistsError):
        tokens.create("ci", [ADMIN])
    assert list(tokens.tokens()) == [made.token]
    assert use(registry_server, made.secret) == f"tenants/{tenant}"


def test_of_many_who_take_an_id_at_once_one_gets_it(tokens: TokenClient) -> None:
    def attempt(_: int) -> pb.CreateTokenResponse | AtelierError:
        try:
            return tokens.create("ci", [READER])
        except (AlreadyExistsError, AbortedError) as error:
            return error

    with ThreadPoolExecutor(8) as threads:
        results = list(threads.map(attempt, range(8)))
    (winner,) = [each for each in results if isinstance(each, pb.CreateTokenResponse)]
    assert list(tokens.tokens()) == [winner.token]


def test_token_gives_at_most_what_its_maker_has(
    registry_server: RegistryServer, tokens: TokenClient, operator: Connection
) -> None:
    with pytest.raises(PermissionDeniedError) as caught:
        tokens.create("mighty", [READER, OPERATOR])
    assert caught.value.metadata == {"scope": "OPERATOR"}
    assert list(tokens.tokens()) == []
    mighty = TokenClient(operator).create("mighty", [OPERATOR])
    with pytest.raises(PermissionDeniedError):
        tokens.rotate("mighty")
    assert list(tokens.tokens()) == [mighty.token]
    tokens.revoke("mighty")
    wait_for_refusal(registry_server, mighty.secret)


def test_administrator_s_token_makes_tokens(registry_server: RegistryServer, tokens: TokenClient) -> None:
    with Connection(registry_server.address, tokens.create("boss", [ADMIN]).secret) as connection:
        boss = TokenClient(connection)
        boss.create("worker", [TRAINER, PUBLISHER, READER, ADMIN])
        with pytest.raises(PermissionDeniedError):
            boss.create("mighty", [OPERATOR])


@pytest.mark.parametrize("change", ["create", "rotate", "revoke"])
def test_validate_only_checks_and_changes_nothing(
    registry_server: RegistryServer, tokens: TokenClient, stub: TokenServiceStub, tenant: str, change: str
) -> None:
    made = tokens.create("ci", [READER])
    name = f"tenants/{tenant}/tokens/ci"
    if change == "create":
        answer = create(stub, token_id="other", validate_only=True)
        assert (answer.secret, answer.token.name) == ("", f"tenants/{tenant}/tokens/other")
        with pytest.raises(AlreadyExistsError):
            create(stub, validate_only=True)
    elif change == "rotate":
        assert stub.RotateToken(pb.RotateTokenRequest(name=name, validate_only=True)).secret == ""
    else:
        stub.RevokeToken(pb.RevokeTokenRequest(name=name, validate_only=True))
    assert list(tokens.tokens()) == [made.token]
    assert use(registry_server, made.secret) == f"tenants/{tenant}"


def test_both_secrets_of_a_rotated_token_work_for_a_while(
    registry_server: RegistryServer, tokens: TokenClient, tenant: str
) -> None:
    first = tokens.create("ci", [READER])
    second = tokens.rotate("ci")
    assert second.secret != first.secret
    assert second.token.expire_time == first.token.expire_time
    assert second.token.rotate_time.ToNanoseconds() > first.token.rotate_time.ToNanoseconds()
    for secret in (first.secret, second.secret):
        assert use(registry_server, secret) == f"tenants/{tenant}"
    third = tokens.rotate("ci")
    wait_for_refusal(registry_server, first.secret)
    for secret in (second.secret, third.secret):
        assert use(registry_server, secret) == f"tenants/{tenant}"


def test_without_overlap_the_old_secret_ends(registry_server: RegistryServer, tokens: TokenClient, tenant: str) -> None:
    first = tokens.create("ci", [READER])
    second = tokens.rotate("ci", overlap=timedelta())
    wait_for_refusal(registry_server, first.secret)
    assert use(registry_server, second.secret) == f"tenants/{tenant}"


@pytest.mark.parametrize("seconds", [-1, 7 * 86400 + 1])
def test_overlap_is_at_most_a_week(tokens: TokenClient, seconds: int) -> None:
    tokens.create("ci", [READER])
    with pytest.raises(InvalidArgumentError) as caught:
        tokens.rotate("ci", overlap=timedelta(seconds=seconds))
    assert caught.value.violations[0].field == "overlap"


def test_revoked_token_ends(registry_server: RegistryServer, tokens: TokenClient, tenant: str) -> None:
    made = tokens.create("ci", [READER])
    assert use(registry_server, made.secret) == f"tenants/{tenant}"
    tokens.revoke("ci")
    wait_for_refusal(registry_server, made.secret)
    assert list(tokens.tokens()) == []
    for change in (tokens.revoke, tokens.rotate):
        with pytest.raises(NotFoundError):
            change("ci")


def test_expired_token_ends_and_takes_no_new_secret(registry_server: RegistryServer, tokens: TokenClient) -> None:
    made = tokens.create("ci", [READER], lifetime=timedelta(seconds=3))
    wait_for_refusal(registry_server, made.secret)
    with pytest.raises(FailedPreconditionError) as caught:
        tokens.rotate("ci")
    assert caught.value.reason == "TOKEN_EXPIRED"


def test_operators_learn_whom_a_secret_stands_for(tokens: TokenClient, operator: Connection, tenant: str) -> None:
    first = tokens.create("ci", [READER, TRAINER])
    second = tokens.rotate("ci", overlap=timedelta(hours=1))
    stub = TokenServiceStub(operator.channel)
    old, new = (stub.VerifyToken(pb.VerifyTokenRequest(secret=each.secret)) for each in (first, second))
    for answer in (old, new):
        assert (answer.tenant, answer.subject, set(answer.scopes)) == (tenant, "ci", {READER, TRAINER})
    assert new.expire_time == second.token.expire_time
    assert timedelta(minutes=59) < old.expire_time.ToDatetime(tzinfo=UTC) - datetime.now(UTC) < timedelta(minutes=61)
    tokens.revoke("ci")
    for secret in (first.secret, second.secret, "", "atl_", "x" * 10_000):
        with pytest.raises(UnauthenticatedError) as caught, translated_errors():
            stub.VerifyToken(pb.VerifyTokenRequest(secret=secret))
        assert caught.value.reason == "SECRET_UNKNOWN"


@pytest.fixture
def talkative(
    registry_server: RegistryServer, signing_key_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[RegistryServer]:
    """A registry that logs all that it can."""
    monkeypatch.setenv("ATELIER_LOG_LEVEL", "DEBUG")
    server = RegistryServer(tmp_path, registry_server.s3, signing_key_file)
    server.start()
    yield server
    server.stop()


def test_no_secret_is_written_to_logs_metrics_or_the_database(
    talkative: RegistryServer, tenant: str, tmp_path: Path
) -> None:
    secrets = [talkative.token(tenant, ADMIN, OPERATOR), "atl_" + "x" * 43]
    with Connection(talkative.address, secrets[0]) as connection:
        tokens, stub = TokenClient(connection), TokenServiceStub(connection.channel)
        secrets += [tokens.create("ci", [READER]).secret, tokens.rotate("ci").secret]
        for secret in secrets:
            attempt(lambda secret=secret: use(talkative, secret))  # type: ignore[misc]
            attempt(lambda secret=secret: stub.VerifyToken(pb.VerifyTokenRequest(secret=secret)))  # type: ignore[misc]
        tokens.revoke("ci")
        wait_for_refusal(talkative, secrets[2])
    metrics = str(talkative.metrics()).encode()
    assert b"grpc_server_handled_total" in metrics
    talkative.stop()
    log = talkative.process.log_path.read_bytes()
    assert b'"level": "debug"' in log
    assert b"TokenService/RotateToken" in log
    stored = b"".join(path.read_bytes() for path in tmp_path.glob("registry.db*"))
    assert stored
    for secret in secrets:
        assert secret.encode() not in log + metrics + stored


def attempt(work: Callable[[], Any]) -> None:
    """Does something that the registry may refuse."""
    try:
        with translated_errors():
            work()
    except UnauthenticatedError:
        pass
