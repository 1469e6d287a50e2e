"""Tokens of an identity provider: JSON Web Tokens of a configured OpenID Connect issuer.

Only RS256 and ES256 are taken, by a key that the provider publishes now. A token's claims say the tenant and the
scopes; whoever runs the provider decides who gets which. OPERATOR is never among them: what concerns the whole
installation stays with tokens that the installation itself has made.
"""

from __future__ import annotations

import asyncio
import json
import time
import urllib.request
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import jwt
import structlog

from atelier.errors import UnauthenticatedError, UnavailableError
from atelier.pb.common.v1.common_pb2 import Scope
from atelier.rpc.channel import is_loopback_host
from atelier.rpc.identity import Identity, check_subject, check_tenant, expired
from atelier.rpc.scopes import SCOPE_NAMES, scope_named

ALGORITHMS = ["RS256", "ES256"]
LEEWAY_SECONDS = 30.0
"""By how much the provider's clock and ours may differ."""
HTTP_SECONDS = 5.0
FRESH_SECONDS = 300.0
"""Keys are fetched again after this long."""
MAX_STALE_SECONDS = 3600.0
"""Keys are used for this long when they cannot be fetched again."""
SUBJECT_PREFIX = "oidc:"
"""Begins the subjects, so that the provider's names are never taken for those of our own tokens."""
_MAX_DOCUMENT_BYTES = 1024 * 1024
_SCOPE_PREFIX = "atelier:"
_GRANTED = {name.lower(): scope_named(name) for name in SCOPE_NAMES if name != "OPERATOR"}
_log = structlog.get_logger("atelier.rpc")


@dataclass(frozen=True, kw_only=True, slots=True)
class OidcConfig:
    """Which provider is trusted, and where its tokens say what."""

    issuer: str
    audience: str
    jwks_uri: str | None = None
    """None: as the provider's discovery document says."""
    tenant_claim: str = "tenant"
    scope_claim: str = "scope"
    """Its value is a list, or text with spaces, of words such as `reader` or `atelier:reader` and of others."""
    refetch_seconds: float = 10.0
    """Unknown keys have the provider asked at most this often."""

    def __post_init__(self) -> None:
        for name in ("issuer", "jwks_uri"):
            value = getattr(self, name)
            if value is not None and not _is_protected(value):
                raise ValueError(f"{name}: is {value!r}; it must begin with https://")


class OidcVerifier:
    """Verifies a provider's tokens. Its methods belong to the event loop."""

    def __init__(self, config: OidcConfig) -> None:
        self._config = config
        self._keys = _ProviderKeys(config)

    async def verify(self, token: str) -> Identity:
        """The identity that a token stands for. See `atelier.rpc.identity.Verifier`."""
        try:
            key = await self._keys.find(jwt.get_unverified_header(token).get("kid"))
            claims = jwt.decode(
                token,
                key,
                ALGORITHMS,
                audience=self._config.audience,
                issuer=self._config.issuer,
                leeway=LEEWAY_SECONDS,
                options={"require": ["exp", "iss", "aud", "sub"]},
            )
        except jwt.ExpiredSignatureError as error:
            raise expired() from error
        except jwt.PyJWTError as error:
            raise UnauthenticatedError("the token is not valid", reason="TOKEN_INVALID") from error
        tenant = check_tenant(claims.get(self._config.tenant_claim))
        subject = check_subject(SUBJECT_PREFIX + claims["sub"])
        return Identity(tenant=tenant, subject=subject, scopes=_scopes(claims.get(self._config.scope_claim)))


class _ProviderKeys:
    """A provider's public keys by their ids, fetched in a thread of their own."""

    def __init__(self, config: OidcConfig) -> None:
        self._config = config
        self._keys: Mapping[str, jwt.PyJWK] = {}
        self._fetched_at = self._tried_at = float("-inf")
        self._fetching: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(1, "oidc")

    async def find(self, key_id: object) -> jwt.PyJWK:
        """The key; UnauthenticatedError when the provider has none by this id, UnavailableError when it is away."""
        key = self._known(key_id, FRESH_SECONDS)
        if key is None:
            fetching = self._start_fetching()
            key = self._known(key_id, MAX_STALE_SECONDS)
            if key is None and fetching is not None:
                await asyncio.shield(fetching)
                key = self._known(key_id, MAX_STALE_SECONDS)
        if key is not None:
            return key
        if self._fetched_at < self._tried_at:
            raise UnavailableError("the identity provider does not answer", reason="OIDC_UNAVAILABLE")
        raise UnauthenticatedError("the token's key is none of the identity provider's", reason="TOKEN_INVALID")

    def _known(self, key_id: object, max_age_seconds: float) -> jwt.PyJWK | None:
        if time.monotonic() - self._fetched_at > max_age_seconds or not isinstance(key_id, str):
            return None
        return self._keys.get(key_id)

    def _start_fetching(self) -> asyncio.Task[None] | None:
        """The fetch that goes on now, begun unless the last one is too short ago."""
        running = self._fetching is not None and not self._fetching.done()
        if not running and time.monotonic() - self._tried_at < self._config.refetch_seconds:
            return None
        if not running:
            self._fetching = asyncio.create_task(self._fetch())
        return self._fetching

    async def _fetch(self) -> None:
        self._tried_at = time.monotonic()
        try:
            self._keys = await asyncio.get_running_loop().run_in_executor(self._thread, _read_keys, self._config)
        except (OSError, ValueError, jwt.PyJWTError) as error:
            _log.warning("the identity provider's keys cannot be fetched", issuer=self._config.issuer, error=str(error))
        else:
            self._fetched_at = time.monotonic()


def _read_keys(config: OidcConfig) -> dict[str, jwt.PyJWK]:
    uri = config.jwks_uri or _discover(config.issuer)
    client = jwt.PyJWKClient(uri, cache_jwk_set=False, timeout=HTTP_SECONDS)
    return {str(key.key_id): key for key in client.get_signing_keys()}


def _discover(issuer: str) -> str:
    """Where the keys are by the discovery document; ValueError when it is not this issuer's."""
    uri = f"{issuer.rstrip('/')}/.well-known/openid-configuration"
    with urllib.request.build_opener(_NoRedirects).open(uri, timeout=HTTP_SECONDS) as response:
        document: Any = json.loads(response.read(_MAX_DOCUMENT_BYTES))
    if not isinstance(document, dict) or document.get("issuer") != issuer:
        raise ValueError(f"{uri} is not the discovery document of {issuer}")
    jwks_uri = document.get("jwks_uri")
    if not isinstance(jwks_uri, str) or not _is_protected(jwks_uri):
        raise ValueError(f"{uri} names no jwks_uri that begins with https://")
    return jwks_uri


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Answers come from where they were asked for, or not at all."""

    def redirect_request(self, *_: Any) -> None:
        return None


def _is_protected(url: str) -> bool:
    parts = urlsplit(url)
    return parts.scheme == "https" or (parts.scheme == "http" and is_loopback_host(parts.hostname or ""))


def _scopes(claim: object) -> frozenset[Scope]:
    """Atelier's scopes among a claim's words."""
    words = claim.split() if isinstance(claim, str) else claim if isinstance(claim, list) else []
    names = (word.removeprefix(_SCOPE_PREFIX) for word in words if isinstance(word, str))
    return frozenset(_GRANTED[name] for name in names if name in _GRANTED)
