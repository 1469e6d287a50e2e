"""Who calls: the services' own tokens, and the choice between the kinds of credentials by their form.

A caller's tenant is what its credential says, never what its request says. Services that act for a tenant on their
own (a training job publishing its adapter) issue a short-lived JSON Web Token (RFC 7519) for that tenant with the
shared key, HMAC-SHA256. Such a token is good until it expires: there is no revocation list.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import jwt
from jwt.types import Options

from atelier.errors import UnauthenticatedError
from atelier.pb.common.v1.common_pb2 import Scope
from atelier.rpc.names import ID_PATTERN
from atelier.rpc.scopes import scope_name, scope_named

ISSUER = "atelier"
ALGORITHM = "HS256"
MIN_KEY_BYTES = 32
MAX_SUBJECT_CHARACTERS = 255
SECRET_PREFIX = "atl_"
"""Begins a random token; no JSON Web Token begins so."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Identity:
    """Who a credential stands for, and what it allows."""

    tenant: str
    subject: str
    scopes: frozenset[Scope]


class Verifier(Protocol):
    """Knows one kind of credential."""

    async def verify(self, token: str) -> Identity:
        """The identity that a token stands for.

        Raises:
            UnauthenticatedError: it stands for nobody now.
            UnavailableError: who would know does not answer.
        """


class TokenAuthority:
    """Issues and verifies tokens with one shared key."""

    def __init__(self, key: bytes) -> None:
        if len(key) < MIN_KEY_BYTES:
            raise ValueError(f"the signing key has {len(key)} bytes; it needs at least {MIN_KEY_BYTES}")
        self._key = key

    @classmethod
    def from_file(cls, path: Path) -> TokenAuthority:
        """Reads the key from a file, whose white space at the ends does not count."""
        return cls(path.read_bytes().strip())

    def issue(self, *, tenant: str, subject: str, scopes: Collection[Scope], lifetime_seconds: float) -> str:
        """A token for `tenant` that allows `scopes` and expires after `lifetime_seconds`."""
        if not ID_PATTERN.fullmatch(tenant):
            raise ValueError(f"tenant: {tenant!r} does not match {ID_PATTERN.pattern}")
        now = time.time()
        claims = {
            "iss": ISSUER,
            "sub": subject,
            "tenant": tenant,
            "scopes": sorted(map(scope_name, scopes)),
            "iat": int(now),
            "exp": int(now + lifetime_seconds),
        }
        return jwt.encode(claims, self._key, algorithm=ALGORITHM)

    def verify(self, token: str) -> Identity:
        """The identity that a token stands for; UnauthenticatedError when it is not valid now."""
        # When it was issued is for people: the clock of who did may be a little ahead.
        options: Options = {"require": ["exp", "iss", "sub", "tenant", "scopes"], "verify_iat": False}
        try:
            claims = jwt.decode(token, self._key, [ALGORITHM], issuer=ISSUER, options=options)
            scopes = frozenset(map(scope_named, claims["scopes"]))
        except jwt.ExpiredSignatureError as error:
            raise expired() from error
        except (jwt.InvalidTokenError, TypeError, ValueError) as error:
            raise UnauthenticatedError("the token is not valid", reason="TOKEN_INVALID") from error
        tenant, subject = check_tenant(claims["tenant"]), check_subject(claims["sub"])
        return Identity(tenant=tenant, subject=subject, scopes=scopes)


class Authenticator:
    """Finds the identity behind a call's `authorization`, by the verifier that its form asks for.

    Args:
        own: verifies the services' own tokens.
        random_tokens: verifies random tokens; None where there are none.
        oidc: verifies an identity provider's tokens; None where no provider is trusted.
    """

    def __init__(
        self, own: TokenAuthority, random_tokens: Verifier | None = None, oidc: Verifier | None = None
    ) -> None:
        self._own = own
        self._random_tokens = random_tokens
        self._oidc = oidc

    async def authenticate(self, authorization: str | None) -> Identity:
        """The identity behind an `authorization` header: `Bearer TOKEN`."""
        if not authorization:
            raise UnauthenticatedError("send the metadata `authorization: Bearer TOKEN`", reason="TOKEN_MISSING")
        scheme, _, token = authorization.partition(" ")
        token = token.strip()
        if scheme.lower() != "bearer" or not token:
            raise UnauthenticatedError("`authorization` is not of the form `Bearer TOKEN`", reason="TOKEN_INVALID")
        if token.startswith(SECRET_PREFIX) and self._random_tokens is not None:
            return await self._random_tokens.verify(token)
        if self._oidc is not None and _claimed_issuer(token) != ISSUER:
            return await self._oidc.verify(token)
        return self._own.verify(token)


def _claimed_issuer(token: str) -> object:
    """Who a token says has issued it: enough to choose a verifier, which believes nothing of it."""
    try:
        return jwt.decode(token, options={"verify_signature": False}).get("iss")
    except jwt.InvalidTokenError as error:
        raise UnauthenticatedError("the token is not valid", reason="TOKEN_INVALID") from error


def check_tenant(value: object) -> str:
    """A tenant's id out of a verified token; UnauthenticatedError when it is none."""
    if not isinstance(value, str) or not ID_PATTERN.fullmatch(value):
        raise UnauthenticatedError("the token names no valid tenant", reason="TOKEN_INVALID")
    return value


def check_subject(value: object) -> str:
    """A subject out of a verified token; UnauthenticatedError when it is none that can be kept and shown."""
    if not isinstance(value, str) or not 1 <= len(value) <= MAX_SUBJECT_CHARACTERS or not value.isprintable():
        raise UnauthenticatedError(
            f"the token's subject is not 1 to {MAX_SUBJECT_CHARACTERS} printable characters", reason="TOKEN_INVALID"
        )
    return value


def expired() -> UnauthenticatedError:
    """What every kind of token that was good once is answered."""
    return UnauthenticatedError("the token has expired", reason="TOKEN_EXPIRED")


def create_key_file(path: Path) -> None:
    """Writes a fresh random key that only the owner can read, unless the file is there already."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not path.exists():
        path.touch(mode=0o600)
        path.write_text(secrets.token_hex(MIN_KEY_BYTES))
