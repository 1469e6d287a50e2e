"""How services verify random tokens by asking: what is remembered, how long, and what happens when nobody answers."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from atelier.client import TokenClient
from atelier.client.connection import Endpoint
from atelier.errors import AtelierError, UnauthenticatedError, UnavailableError
from atelier.local.process import wait_until
from atelier.rpc.identity import Identity, TokenAuthority
from atelier.rpc.scopes import ADMIN, READER
from atelier.rpc.tokens import MAX_REMEMBERED, TokenVerifier, Verified, verified_by
from tests.harness.registry import RegistryServer

SECRET = "atl_" + "s" * 43
ACME = Identity(tenant="acme", subject="ci", scopes=frozenset({READER}))
Ask = Callable[[str], Verified]


class Asked:
    """Answers about every secret, and counts the questions."""

    def __init__(self, *, lifetime_seconds: float = 3600.0) -> None:
        self.count = 0
        self._lifetime_seconds = lifetime_seconds

    def __call__(self, secret: str) -> Verified:
        self.count += 1
        return Verified(identity=ACME, expire_seconds=time.time() + self._lifetime_seconds)


def test_good_answer_is_remembered_and_asked_for_once_at_a_time() -> None:
    asked = Asked()

    async def verify() -> list[Identity]:
        verifier = TokenVerifier(asked)
        together = await asyncio.gather(*(verifier.verify(SECRET) for _ in range(50)))
        return [*together, await verifier.verify(SECRET)]

    assert asyncio.run(verify()) == [ACME] * 51
    assert asked.count == 1


@pytest.mark.parametrize(("good_seconds", "lifetime_seconds"), [(0.2, 3600.0), (3600.0, 0.2)])
def test_good_answer_is_forgotten_in_time_and_at_the_token_s_end(good_seconds: float, lifetime_seconds: float) -> None:
    asked = Asked(lifetime_seconds=lifetime_seconds)
    verifier = TokenVerifier(asked, good_seconds=good_seconds)
    with asyncio.Runner() as runner:

        def asked_again() -> bool:
            runner.run(verifier.verify(SECRET))
            return asked.count == 2

        wait_until(asked_again, timeout_seconds=10, what="the verifier asks again")


def test_refusal_is_remembered_too() -> None:
    questions = []

    def refuse(secret: str) -> Verified:
        questions.append(secret)
        raise UnauthenticatedError("nobody")

    verifier = TokenVerifier(refuse)
    with asyncio.Runner() as runner:
        for _ in range(3):
            with pytest.raises(UnauthenticatedError):
                runner.run(verifier.verify(SECRET))
    assert questions == [SECRET]


@pytest.mark.parametrize("secret", ["atl_", SECRET[:-1], SECRET + "s", SECRET[:-1] + "!", SECRET + "\n"])
def test_nobody_is_asked_about_what_cannot_be_a_secret(secret: str) -> None:
    asked = Asked()
    with pytest.raises(UnauthenticatedError):
        asyncio.run(TokenVerifier(asked).verify(secret))
    assert asked.count == 0


def test_memory_is_bounded_and_the_oldest_goes() -> None:
    asked = Asked()

    async def verify() -> None:
        verifier = TokenVerifier(asked)
        for number in range(MAX_REMEMBERED + 1):
            await verifier.verify(f"atl_{number:043}")
        for number in (MAX_REMEMBERED, 1, 0):
            await verifier.verify(f"atl_{number:043}")

    asyncio.run(verify())
    assert asked.count == MAX_REMEMBERED + 2


def test_question_goes_on_for_others_when_a_caller_leaves() -> None:
    begun, go_on = threading.Event(), threading.Event()

    def slow(secret: str) -> Verified:
        begun.set()
        assert go_on.wait(10)
        return Asked()(secret)

    async def verify() -> Identity:
        verifier = TokenVerifier(slow)
        leaving = asyncio.create_task(verifier.verify(SECRET))
        await asyncio.to_thread(begun.wait)
        staying = asyncio.create_task(verifier.verify(SECRET))
        await asyncio.sleep(0)
        leaving.cancel()
        go_on.set()
        return await staying

    assert asyncio.run(verify()) == ACME


@pytest.fixture
def server(registry_server: RegistryServer, signing_key_file: Path, tmp_path: Path) -> Iterator[RegistryServer]:
    """A registry that the test may stop."""
    server = RegistryServer(tmp_path, registry_server.s3, signing_key_file)
    server.start()
    yield server
    server.stop()


def outcome(runner: asyncio.Runner, verifier: TokenVerifier, secret: str) -> Identity | type[AtelierError]:
    """Whom a secret stands for, or the error."""
    try:
        return runner.run(verifier.verify(secret))
    except AtelierError as error:
        return type(error)


def test_registry_is_asked_and_its_absence_is_no_refusal(
    server: RegistryServer, authority: TokenAuthority, tenant: str
) -> None:
    with server.connect(tenant, ADMIN) as connection:
        known, other = (TokenClient(connection).create(name, [READER]).secret for name in ("known", "other"))
    identity = Identity(tenant=tenant, subject="known", scopes=frozenset({READER}))
    endpoint = Endpoint(address=server.address)
    with asyncio.Runner() as runner, verified_by(endpoint, authority, "test", good_seconds=20) as verifier:
        assert outcome(runner, verifier, known) == identity
        assert outcome(runner, verifier, SECRET) is UnauthenticatedError
        server.stop()
        assert outcome(runner, verifier, other) is UnavailableError
        assert outcome(runner, verifier, known) == identity
        wait_until(
            lambda: outcome(runner, verifier, known) is UnavailableError, timeout_seconds=60, what="the answer ends"
        )


def test_revoked_token_ends_when_the_answer_is_forgotten(
    registry_server: RegistryServer, authority: TokenAuthority, tenant: str
) -> None:
    endpoint = Endpoint(address=registry_server.address)
    with (
        asyncio.Runner() as runner,
        registry_server.connect(tenant, ADMIN) as connection,
        verified_by(endpoint, authority, "test", good_seconds=2) as verifier,
    ):
        tokens = TokenClient(connection)
        secret = tokens.create("ci", [READER]).secret
        assert isinstance(outcome(runner, verifier, secret), Identity)
        tokens.revoke("ci")
        wait_until(
            lambda: outcome(runner, verifier, secret) is UnauthenticatedError,
            timeout_seconds=20,
            what="the token is refused",
        )


def test_registry_that_does_not_know_the_service_makes_unavailable(registry_server: RegistryServer) -> None:
    """A wrong signing key is the installation's fault, and no caller's."""
    endpoint = Endpoint(address=registry_server.address)
    with asyncio.Runner() as runner, verified_by(endpoint, TokenAuthority(b"o" * 64), "test") as verifier:
        assert outcome(runner, verifier, SECRET) is UnavailableError
