"""Keys that sign versions, made on the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from atelier.cli.main import run
from atelier.signing import Policy, Signer, Verifier


def test_a_key_is_made_that_registry_and_inference_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "manifest.pem"
    assert run(["signing-key", "create", str(path)]) == 0
    (signature,) = Signer.from_file(path).sign(b"{}")
    shown = capsys.readouterr().out
    assert signature.key_id in shown
    assert "PRIVATE" not in shown
    assert path.stat().st_mode & 0o077 == 0
    Verifier.from_files([Path(f"{path}.pub")], Policy.REQUIRE)


def test_a_key_that_is_there_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "manifest.pem"
    path.write_text("mine")
    assert run(["signing-key", "create", str(path)]) == 1
    assert "is there already; choose another path" in capsys.readouterr().err
    assert path.read_text() == "mine"
