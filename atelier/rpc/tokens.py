"""Random bearer tokens: their form, and how a service verifies them without asking about every call.

Who keeps the tokens is asked in threads of its own and once at a time for each secret. Good answers are remembered
for a while, so that a revoked token works on for up to that long; refusals more briefly. When who keeps them is away,
what is remembered goes on to its end, and other tokens are UNAVAILABLE, which is not to say that they are wrong.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

import structlog

from atelier.client.connection import Endpoint
from atelier.errors import AtelierError, UnauthenticatedError, UnavailableError
from atelier.pb.registry.v1.tokens_pb2 import VerifyTokenRequest
from atelier.pb.registry.v1.tokens_pb2_grpc import TokenServiceStub
from atelier.rpc.identity import SECRET_PREFIX, Identity, TokenAuthority
from atelier.rpc.scopes import OPERATOR
from atelier.rpc.status import translated_errors

GOOD_SECONDS = 30.0
REFUSED_SECONDS = 5.0
ASK_SECONDS = 5.0
TOKEN_SECONDS = 60.0
"""Of the own token with which a service asks."""
MAX_REMEMBERED = 10_000
ASKING_THREADS = 4
SERVICE_TENANT = "atelier"
"""Of the services' own tokens, whose only scope is OPERATOR: they reach nothing of a tenant by this name."""
SECRET_UNKNOWN = "SECRET_UNKNOWN"
"""Reason of VerifyToken's refusal, as opposed to a refusal of who asks."""
_SECRET = re.compile(re.escape(SECRET_PREFIX) + r"[A-Za-z0-9_-]{43}")
_Answer = TypeVar("_Answer")
_log = structlog.get_logger("atelier.rpc")


@dataclass(frozen=True, kw_only=True, slots=True)
class Verified:
    """Whom a secret stands for, and until when by the clock."""

    identity: Identity
    expire_seconds: float
    """Since the epoch."""


def secret_digest(secret: str) -> str:
    """What is kept of a secret: SHA-256, in hexadecimal digits."""
    return hashlib.sha256(secret.encode()).hexdigest()


class TokenVerifier:
    """Verifies random tokens by asking, and remembers the answers. Its methods belong to the event loop.

    Args:
        ask: whom a secret stands for, or UnauthenticatedError; it may block.
        good_seconds: how long good answers are remembered.
    """

    def __init__(self, ask: Callable[[str], Verified], *, good_seconds: float = GOOD_SECONDS) -> None:
        self._ask = ask
        self._good_seconds = good_seconds
        self._good: _Memory[Identity] = _Memory()
        self._refused: _Memory[None] = _Memory()
        self._asking: dict[str, asyncio.Task[Identity | None]] = {}
        self._threads = ThreadPoolExecutor(ASKING_THREADS, "tokens")

    async def verify(self, token: str) -> Identity:
        """The identity that a token stands for. See `atelier.rpc.identity.Verifier`."""
        digest = secret_digest(token)
        identity = self._good.get(digest)
        if identity is None and _SECRET.fullmatch(token) and digest not in self._refused:
            identity = await asyncio.shield(self._answer(digest, token))
        if identity is None:
            raise UnauthenticatedError("the token is unknown, revoked or expired", reason="TOKEN_INVALID")
        return identity

    def _answer(self, digest: str, token: str) -> asyncio.Task[Identity | None]:
        """The one question about this secret that goes on now."""
        if digest not in self._asking:
            task = asyncio.create_task(self._find_out(digest, token))
            self._asking[digest] = task
            task.add_done_callback(lambda _: self._asking.pop(digest))
            task.add_done_callback(lambda done: done.cancelled() or done.exception())  # nobody may wait any more
        return self._asking[digest]

    async def _find_out(self, digest: str, token: str) -> Identity | None:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(ASK_SECONDS):
                verified = await loop.run_in_executor(self._threads, self._ask, token)
        except UnauthenticatedError:
            self._refused.put(digest, None, REFUSED_SECONDS)
            return None
        except TimeoutError as error:
            raise UnavailableError("tokens cannot be verified now", reason="TOKENS_UNAVAILABLE") from error
        seconds = min(self._good_seconds, verified.expire_seconds - time.time())
        self._good.put(digest, verified.identity, seconds)
        return verified.identity


class _Memory(Generic[_Answer]):
    """Answers by digest, each for a while; the oldest go when there are too many."""

    def __init__(self) -> None:
        self._answers: dict[str, tuple[_Answer, float]] = {}

    def __contains__(self, digest: str) -> bool:
        return digest in self._answers and time.monotonic() < self._answers[digest][1]

    def get(self, digest: str) -> _Answer | None:
        return self._answers[digest][0] if digest in self else None

    def put(self, digest: str, answer: _Answer, seconds: float) -> None:
        self._answers.pop(digest, None)
        self._answers[digest] = (answer, time.monotonic() + seconds)
        if len(self._answers) > MAX_REMEMBERED:
            del self._answers[next(iter(self._answers))]


@contextmanager
def verified_by(
    registry: Endpoint, authority: TokenAuthority, subject: str, *, good_seconds: float = GOOD_SECONDS
) -> Iterator[TokenVerifier]:
    """A verifier that asks the registry.

    Args:
        authority: issues the service's own tokens.
        subject: the service's name, for the registry's eyes.
        good_seconds: how long good answers are remembered.
    """

    def own_token() -> str:
        return authority.issue(
            tenant=SERVICE_TENANT, subject=subject, scopes=[OPERATOR], lifetime_seconds=TOKEN_SECONDS
        )

    with registry.connect(own_token) as connection:
        stub = TokenServiceStub(connection.channel)
        yield TokenVerifier(lambda secret: _ask_registry(stub, secret), good_seconds=good_seconds)


def _ask_registry(stub: TokenServiceStub, secret: str) -> Verified:
    try:
        with translated_errors():
            answer = stub.VerifyToken(VerifyTokenRequest(secret=secret), timeout=ASK_SECONDS)
    except AtelierError as error:
        if error.reason == SECRET_UNKNOWN:
            raise
        _log.warning("the registry does not verify tokens", reason=error.reason)
        raise UnavailableError("tokens cannot be verified now", reason="TOKENS_UNAVAILABLE") from error
    identity = Identity(tenant=answer.tenant, subject=answer.subject, scopes=frozenset(answer.scopes))
    return Verified(identity=identity, expire_seconds=answer.expire_time.ToNanoseconds() / 1e9)
