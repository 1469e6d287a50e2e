"""`atelier tokens`, from the signing key to a token that is revoked; and how the services are spoken to."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from atelier.cli.main import run
from atelier.client import Connection, RegistryClient
from atelier.local.profile import save_profile
from tests.harness.certificates import CertificateAuthority
from tests.harness.registry import RegistryServer

Captured = pytest.CaptureFixture[str]


def printed(capsys: Captured, *arguments: str) -> str:
    """What a command that succeeds prints."""
    capsys.readouterr()
    assert run(list(arguments)) == 0
    return capsys.readouterr().out.strip()


@pytest.fixture
def first_token(
    registry_server: RegistryServer,
    signing_key_file: Path,
    tenant: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Captured,
) -> str:
    """What an installation begins with, in the environment."""
    key = ["--signing-key-file", str(signing_key_file)]
    token = printed(capsys, "tokens", "bootstrap", *key, "--tenant", tenant, "--scope", "admin")
    monkeypatch.setenv("ATELIER_REGISTRY", registry_server.address)
    monkeypatch.setenv("ATELIER_TOKEN", token)
    return token


@pytest.mark.usefixtures("first_token")
def test_token_is_made_used_rotated_and_revoked(registry_server: RegistryServer, tenant: str, capsys: Captured) -> None:
    make = ["tokens", "create", "--id", "ci", "--scope", "reader", "--scope", "TRAINER", "--expires-days", "7"]
    secret = printed(capsys, *make, "--description", "[bold]nightly")
    with Connection(registry_server.address, secret) as connection:
        assert RegistryClient(connection).tenant().name == f"tenants/{tenant}"
    (listed,) = json.loads(printed(capsys, "tokens", "list", "--json"))["tokens"]
    assert (listed["name"], listed["scopes"]) == (f"tenants/{tenant}/tokens/ci", ["SCOPE_READER", "SCOPE_TRAINER"])
    table = printed(capsys, "tokens", "list")
    assert "[bold]nightly" in table
    assert secret not in table
    rotated = json.loads(printed(capsys, "tokens", "rotate", "ci", "--overlap-hours", "0", "--json"))
    assert rotated["secret"] not in ("", secret)
    printed(capsys, "tokens", "revoke", "ci")
    assert json.loads(printed(capsys, "tokens", "list", "--json")) == {"tokens": []}


@pytest.mark.usefixtures("first_token")
def test_refusals_are_told_in_a_line(capsys: Captured) -> None:
    assert run(["tokens", "create", "--id", "ci", "--scope", "operator"]) == 1
    assert "[SCOPE_MISSING]" in capsys.readouterr().err
    assert run(["tokens", "revoke", "nobody"]) == 1
    assert "[TOKEN_NOT_FOUND]" in capsys.readouterr().err
    for wrong in (["--scope", "king"], ["--expires-days", "367", "--scope", "reader"], []):
        assert run(["tokens", "create", "--id", "ci", *wrong]) == 2


@pytest.mark.parametrize(("key", "tenant"), [("short", "acme"), ("k" * 64, "No Tenant")])
def test_bootstrap_says_what_is_wrong(tmp_path: Path, key: str, tenant: str, capsys: Captured) -> None:
    path = tmp_path / "signing.key"
    path.write_text(key)
    arguments = ["--signing-key-file", str(path), "--tenant", tenant, "--scope", "reader"]
    assert run(["tokens", "bootstrap", *arguments]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "at least 32" in captured.err or "tenant" in captured.err


def test_no_token_goes_to_another_machine_in_plaintext(monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    monkeypatch.setenv("ATELIER_REGISTRY", "registry.invalid:7600")
    monkeypatch.setenv("ATELIER_TOKEN", "atl_secret")
    assert run(["adapters", "list"]) == 1
    assert "[PLAINTEXT_REFUSED]" in capsys.readouterr().err
    monkeypatch.setenv("ATELIER_ALLOW_PLAINTEXT", "1")
    assert run(["adapters", "list"]) == 1
    assert "[UNAVAILABLE]" in capsys.readouterr().err


def test_client_certificate_needs_its_key_and_an_authority(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Captured
) -> None:
    monkeypatch.setenv("ATELIER_REGISTRY", "127.0.0.1:1")
    monkeypatch.setenv("ATELIER_TOKEN", "atl_secret")
    for names in (["CERTIFICATE"], ["CERTIFICATE", "KEY"], ["CA", "KEY"]):
        with monkeypatch.context() as environment:
            for name in names:
                environment.setenv(f"ATELIER_{name}_FILE", str(tmp_path))
            assert run(["adapters", "list"]) == 1
        assert "go together" in capsys.readouterr().err


def test_own_services_are_spoken_to_in_plaintext_whatever_others_need(
    registry_server: RegistryServer, tenant: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    addresses = dict.fromkeys(("registry", "trainer", "inference"), registry_server.address)
    save_profile({**addresses, "token": registry_server.token(tenant)})
    monkeypatch.setenv("ATELIER_CA_FILE", str(CertificateAuthority(tmp_path).file))
    assert run(["adapters", "list"]) == 0
