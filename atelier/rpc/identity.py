"""Who calls: bearer tokens, which are JSON Web Tokens (RFC 7519) with a `tenant` claim.

A caller's tenant is what its token says, never what its request says. Services that act for a tenant on their
own (a training job publishing its adapter) issue a short-lived token for that tenant with the shared key.
Tokens are signed with HMAC-SHA256; a stolen token is good until it expires: there is no revocation list.
"""

from __future__ import annotations

import re
import secrets
import time
from dataclasses import dataclass
from pathlib import Path

import jwt

from atelier.errors import UnauthenticatedError

ISSUER = "atelier"
ALGORITHM = "HS256"
MIN_KEY_BYTES = 32
TENANT_PATTERN = re.compile(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?")


@dataclass(frozen=True, kw_only=True, slots=True)
class Identity:
    """Who a credential stands for."""

    tenant: str
    subject: str


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

    def issue(self, *, tenant: str, subject: str, lifetime_seconds: float) -> str:
        """A token for `tenant` that expires after `lifetime_seconds`."""
        if not TENANT_PATTERN.fullmatch(tenant):
            raise ValueError(f"tenant: {tenant!r} does not match {TENANT_PATTERN.pattern}")
        now = time.time()
        claims = {"iss": ISSUER, "sub": subject, "tenant": tenant, "iat": int(now), "exp": int(now + lifetime_seconds)}
        return jwt.encode(claims, self._key, algorithm=ALGORITHM)

    def verify(self, token: str) -> Identity:
        """The identity that a token stands for; UnauthenticatedError when it is not valid now."""
        try:
            claims = jwt.decode(
                token, self._key, [ALGORITHM], issuer=ISSUER, options={"require": ["exp", "iss", "sub", "tenant"]}
            )
        except jwt.ExpiredSignatureError as error:
            raise UnauthenticatedError("the token has expired", reason="TOKEN_EXPIRED") from error
        except jwt.InvalidTokenError as error:
            raise UnauthenticatedError("the token is not valid", reason="TOKEN_INVALID") from error
        tenant = claims["tenant"]
        if not isinstance(tenant, str) or not TENANT_PATTERN.fullmatch(tenant):
            raise UnauthenticatedError("the token names no valid tenant", reason="TOKEN_INVALID")
        return Identity(tenant=tenant, subject=claims["sub"])

    def authenticate(self, authorization: str | None) -> Identity:
        """The identity behind an `authorization` header: `Bearer TOKEN`."""
        if not authorization:
            raise UnauthenticatedError("send the metadata `authorization: Bearer TOKEN`", reason="TOKEN_MISSING")
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise UnauthenticatedError("`authorization` is not of the form `Bearer TOKEN`", reason="TOKEN_INVALID")
        return self.verify(token.strip())


def create_key_file(path: Path) -> None:
    """Writes a fresh random key that only the owner can read, unless the file is there already."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not path.exists():
        path.touch(mode=0o600)
        path.write_text(secrets.token_hex(MIN_KEY_BYTES))
