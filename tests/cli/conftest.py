"""Every test of the command line starts with no service known and no profile, and finds those that it asks for."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.harness.registry import RegistryServer


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No service, token or profile; tables are wide; Ctrl-C interrupts, also where a shell has let it be ignored."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    transport = ("CA_FILE", "CERTIFICATE_FILE", "KEY_FILE", "ALLOW_PLAINTEXT")
    for name in ("REGISTRY", "TRAINER", "INFERENCE", "TOKEN", *transport):
        monkeypatch.delenv(f"ATELIER_{name}", raising=False)
    monkeypatch.setenv("ATELIER_PROFILE", str(tmp_path / "profile.json"))
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture
def registry_environment(registry_server: RegistryServer, tenant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment of the test's tenant."""
    monkeypatch.setenv("ATELIER_REGISTRY", registry_server.address)
    monkeypatch.setenv("ATELIER_TOKEN", registry_server.token(tenant))
