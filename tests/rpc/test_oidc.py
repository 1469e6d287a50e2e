"""Tokens of an identity provider, which serves its keys over real HTTP."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import socket
import time
from collections.abc import Iterator
from typing import Any

import jwt
import pytest

from atelier.errors import AtelierError, UnauthenticatedError, UnavailableError
from atelier.local.process import wait_until
from atelier.rpc.identity import Authenticator, Identity, TokenAuthority
from atelier.rpc.oidc import LEEWAY_SECONDS, OidcConfig, OidcVerifier
from atelier.rpc.scopes import PUBLISHER, READER, TRAINER
from tests.harness.identity_provider import AUDIENCE, IdentityProvider

KEYS = "/realm/keys"


@pytest.fixture
def provider() -> Iterator[IdentityProvider]:
    """A provider that the test's verifier trusts."""
    provider = IdentityProvider()
    yield provider
    provider.close()


def config(provider: IdentityProvider, **changes: Any) -> OidcConfig:
    """Trusts the provider; unknown keys have it asked at most each half second."""
    return OidcConfig(**{"issuer": provider.issuer, "audience": AUDIENCE, "refetch_seconds": 0.5, **changes})


class Caller:
    """Sends tokens to one verifier, on one event loop."""

    def __init__(self, config: OidcConfig) -> None:
        self._verifier = OidcVerifier(config)
        self.runner = asyncio.Runner()

    def verify(self, token: str) -> Identity:
        """Whom a token stands for."""
        return self.runner.run(self._verifier.verify(token))

    def refusal(self, token: str) -> AtelierError | None:
        """With what a token is refused; None when it is not."""
        try:
            self.verify(token)
        except AtelierError as error:
            return error
        return None

    def verify_at_once(self, tokens: list[str]) -> list[Identity]:
        """Whom the tokens stand for, sent together."""

        async def gather() -> list[Identity]:
            return await asyncio.gather(*map(self._verifier.verify, tokens))

        return self.runner.run(gather())


@pytest.fixture
def caller(provider: IdentityProvider) -> Iterator[Caller]:
    """Speaks to a verifier that trusts the provider."""
    caller = Caller(config(provider))
    yield caller
    caller.runner.close()


def test_token_says_tenant_subject_and_scopes(caller: Caller, provider: IdentityProvider) -> None:
    assert caller.verify(provider.token()) == Identity(tenant="acme", subject="oidc:ann", scopes=frozenset({TRAINER}))


def test_keys_on_a_curve_are_taken(caller: Caller, provider: IdentityProvider) -> None:
    provider.add_key("curve", curve=True)
    assert caller.verify(provider.token("curve")).tenant == "acme"


@pytest.mark.parametrize(
    ("claim", "scopes"),
    [
        ("reader publisher", {READER, PUBLISHER}),
        (["atelier:reader", "profile", 7], {READER}),
        ("atelier:operator operator", set()),
        ("READER scope_reader other:reader", set()),
        (7, set()),
        (None, set()),
    ],
)
def test_scopes_are_the_known_words_but_never_the_operator_s(
    caller: Caller, provider: IdentityProvider, claim: object, scopes: set[int]
) -> None:
    assert caller.verify(provider.token(scope=claim)).scopes == scopes


def test_claims_are_found_where_the_configuration_says(provider: IdentityProvider) -> None:
    caller = Caller(config(provider, tenant_claim="org", scope_claim="roles"))
    with caller.runner:
        identity = caller.verify(provider.token(org="globex", roles=["reader"]))
    assert (identity.tenant, identity.scopes) == ("globex", {READER})


@pytest.mark.parametrize(
    ("claims", "reason"),
    [
        ({"aud": "another"}, "TOKEN_INVALID"),
        ({"aud": None}, "TOKEN_INVALID"),
        ({"iss": "https://somebody.example"}, "TOKEN_INVALID"),
        ({"sub": None}, "TOKEN_INVALID"),
        ({"sub": "x" * 251}, "TOKEN_INVALID"),
        ({"sub": "a\0b"}, "TOKEN_INVALID"),
        ({"exp": None}, "TOKEN_INVALID"),
        ({"exp": 1_000_000_000}, "TOKEN_EXPIRED"),
        ({"nbf": 2**32}, "TOKEN_INVALID"),
        ({"tenant": None}, "TOKEN_INVALID"),
        ({"tenant": "Acme/.."}, "TOKEN_INVALID"),
        ({"tenant": ["acme"]}, "TOKEN_INVALID"),
    ],
)
def test_token_with_a_wrong_claim_is_refused(
    caller: Caller, provider: IdentityProvider, claims: dict[str, Any], reason: str
) -> None:
    refusal = caller.refusal(provider.token(**claims))
    assert isinstance(refusal, UnauthenticatedError)
    assert refusal.reason == reason


def test_clocks_may_differ_a_little(caller: Caller, provider: IdentityProvider) -> None:
    now = time.time()
    assert caller.refusal(provider.token(exp=now - LEEWAY_SECONDS / 2)) is None
    assert caller.refusal(provider.token(exp=now - 2 * LEEWAY_SECONDS)) is not None


def hs256_by_the_public_key(provider: IdentityProvider) -> str:
    """A forgery for careless verifiers, with the public key as the secret. PyJWT refuses to make it."""
    parts = [{"alg": "HS256", "kid": "first"}, jwt.decode(provider.token(), options={"verify_signature": False})]
    signed = b".".join(base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=") for part in parts)
    signature = hmac.digest(provider.public_key("first"), signed, hashlib.sha256)
    return (signed + b"." + base64.urlsafe_b64encode(signature).rstrip(b"=")).decode()


def test_token_by_another_algorithm_or_key_is_refused(caller: Caller, provider: IdentityProvider) -> None:
    stranger = IdentityProvider()
    stranger.close()
    forgeries = [
        hs256_by_the_public_key(provider),
        provider.token(signing_key="", algorithm="none"),
        provider.token(algorithm="RS512"),
        provider.token(algorithm="PS256"),
        stranger.token(iss=provider.issuer),
        provider.token()[:-8] + "AAAAAAAA",
        "a.b.c",
        "",
    ]
    refusals = [caller.refusal(forgery) for forgery in forgeries]
    assert [type(refusal) for refusal in refusals] == [UnauthenticatedError] * len(forgeries)


def test_new_key_is_found_and_a_withdrawn_one_ends(provider: IdentityProvider) -> None:
    caller = Caller(config(provider))
    with caller.runner:
        assert caller.refusal(provider.token("first")) is None
        old = provider.token("first")
        provider.add_key("second")
        wait_until(
            lambda: caller.refusal(provider.token("second")) is None, timeout_seconds=10, what="the new key is known"
        )
        provider.withdraw_key("first")
        provider.add_key("third")
        wait_until(
            lambda: caller.refusal(provider.token("third")) is None, timeout_seconds=10, what="the third key is known"
        )
        assert isinstance(caller.refusal(old), UnauthenticatedError)


def test_keys_are_asked_for_once_and_unknown_ones_rarely(provider: IdentityProvider) -> None:
    caller = Caller(config(provider, refetch_seconds=3600.0))
    with caller.runner:
        assert len(caller.verify_at_once([provider.token()] * 50)) == 50
        stranger = IdentityProvider()
        stranger.close()
        stranger.add_key("unknown")
        refusals = [caller.refusal(stranger.token("unknown", iss=provider.issuer)) for _ in range(20)]
    assert {type(refusal) for refusal in refusals} == {UnauthenticatedError}
    assert provider.requests.count(KEYS) == 1


def test_keys_are_taken_from_where_the_configuration_says(provider: IdentityProvider) -> None:
    caller = Caller(config(provider, jwks_uri=f"{provider.issuer}/keys"))
    with caller.runner:
        assert caller.refusal(provider.token()) is None
    assert provider.requests == [KEYS]


@pytest.mark.parametrize(
    "discovery", [{"issuer": "https://somebody.example"}, {"jwks_uri": "http://192.0.2.1/keys"}, {"jwks_uri": None}]
)
def test_discovery_document_that_is_not_the_issuer_s_is_not_followed(
    caller: Caller, provider: IdentityProvider, discovery: dict[str, Any]
) -> None:
    provider.discovery = discovery
    assert isinstance(caller.refusal(provider.token()), UnavailableError)
    assert KEYS not in provider.requests


def test_provider_that_is_away_makes_unavailable_and_not_wrong() -> None:
    provider = IdentityProvider()
    token, trusting = provider.token(), config(provider)
    provider.close()
    caller = Caller(trusting)
    with caller.runner:
        assert isinstance(caller.refusal(token), UnavailableError)


def test_known_keys_outlive_the_provider() -> None:
    provider = IdentityProvider()
    caller = Caller(config(provider, refetch_seconds=0.001))
    with caller.runner:
        assert caller.refusal(provider.token()) is None
        provider.add_key("second")
        provider.close()
        assert caller.refusal(provider.token()) is None
        assert isinstance(caller.refusal(provider.token("second")), UnavailableError)
        assert caller.refusal(provider.token()) is None


def test_provider_that_hangs_holds_up_no_other_credential() -> None:
    own = TokenAuthority(b"k" * 64)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        issuer = f"http://127.0.0.1:{silent.getsockname()[1]}"
        oidc = OidcVerifier(OidcConfig(issuer=issuer, audience=AUDIENCE))
        authenticator = Authenticator(own, oidc=oidc)
        foreign = jwt.encode({"iss": issuer}, "k" * 64, algorithm="HS256", headers={"kid": "first"})
        mine = own.issue(tenant="acme", subject="ann", scopes=[READER], lifetime_seconds=60)

        async def both() -> tuple[Identity, bool]:
            waiting = asyncio.create_task(authenticator.authenticate(f"Bearer {foreign}"))
            await asyncio.to_thread(silent.accept)
            identity = await authenticator.authenticate(f"Bearer {mine}")
            done = waiting.done()
            with pytest.raises(UnavailableError):
                await waiting
            return identity, done

        identity, done = asyncio.run(both())
    assert (identity.tenant, done) == ("acme", False)


@pytest.mark.parametrize(
    "url",
    [
        "http://login.example",
        "ftp://login.example",
        "file:///etc/passwd",
        "login.example",
        "http://localhost:80@login.example/x",
    ],
)
@pytest.mark.parametrize("field", ["issuer", "jwks_uri"])
def test_keys_come_over_protected_ways_only(field: str, url: str) -> None:
    fields = {"issuer": "https://login.example", "audience": AUDIENCE, field: url}
    with pytest.raises(ValueError, match=field):
        OidcConfig(**fields)  # type: ignore[arg-type]
