"""Tokens and the key that signs them."""

from __future__ import annotations

import stat
import time
from pathlib import Path

import jwt
import pytest

from atelier.errors import UnauthenticatedError
from atelier.rpc.identity import MIN_KEY_BYTES, Identity, TokenAuthority, create_key_file

KEY = b"k" * 64
AUTHORITY = TokenAuthority(KEY)


def signed(key: bytes = KEY, algorithm: str = "HS256", **claims: object) -> str:
    """A token with these claims beside those of a valid one; None takes a claim away."""
    usual = {"iss": "atelier", "sub": "ann", "tenant": "acme", "exp": time.time() + 60}
    every = {name: value for name, value in {**usual, **claims}.items() if value is not None}
    return jwt.encode(every, key, algorithm=algorithm)


def test_issued_token_stands_for_its_tenant_and_subject() -> None:
    token = AUTHORITY.issue(tenant="acme", subject="ann", lifetime_seconds=60)
    assert AUTHORITY.authenticate(f"Bearer {token}") == Identity(tenant="acme", subject="ann")


@pytest.mark.parametrize(
    "token",
    [
        *("", "x", "a.b.c", signed(key=b"o" * 64), signed(algorithm="HS512"), signed(iss="somebody")),
        *(signed(tenant=None), signed(tenant="-"), signed(tenant="A/b"), signed(tenant=7), signed(sub=None)),
        *(signed(exp=None), signed(exp=time.time() - 5)),
    ],
)
def test_token_that_the_authority_would_not_issue_is_refused(token: str) -> None:
    with pytest.raises(UnauthenticatedError):
        AUTHORITY.verify(token)


@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer ", "Basic x", "bearer"])
def test_header_of_another_form_is_refused(header: str | None) -> None:
    with pytest.raises(UnauthenticatedError):
        AUTHORITY.authenticate(header)


@pytest.mark.parametrize("tenant", ["", "-", "Acme", "a/b", "a" * 64])
def test_no_token_is_issued_for_an_impossible_tenant(tenant: str) -> None:
    with pytest.raises(ValueError, match="tenant"):
        AUTHORITY.issue(tenant=tenant, subject="ann", lifetime_seconds=60)


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
    token = TokenAuthority.from_file(path).issue(tenant="acme", subject="ann", lifetime_seconds=60)
    assert TokenAuthority.from_file(path).verify(token).tenant == "acme"
