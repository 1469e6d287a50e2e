"""The contracts: checked-in stubs are what the protos say, and the protos keep the rules of buf.yaml."""

from __future__ import annotations

import shutil
from pathlib import Path

import atelier.pb
from tools.generate_stubs import PROTOS, generate
from tools.lint_protos import lint

CHECKED_IN = Path(next(iter(atelier.pb.__path__)))


def sources(package: Path) -> dict[str, str]:
    """Relative path to text of everything that Python or a type checker reads in a package."""
    return {
        path.relative_to(package).as_posix(): path.read_text()
        for path in package.rglob("*.py*")
        if "__pycache__" not in path.parts
    }


def test_checked_in_stubs_are_those_of_the_protos(tmp_path: Path) -> None:
    generate(tmp_path / "pb")
    assert sources(tmp_path / "pb") == sources(CHECKED_IN)


def test_protos_keep_the_rules() -> None:
    assert lint() == []


def test_a_broken_rule_is_found_and_placed(tmp_path: Path) -> None:
    protos = tmp_path / "protos"
    shutil.copytree(PROTOS, protos)
    contract = protos / "atelier" / "registry" / "v1" / "registry.proto"
    contract.write_text(contract.read_text() + "\nmessage undocumentedMessage {}\n")
    findings = lint(protos)
    assert len(findings) == 2
    assert all("atelier/registry/v1/registry.proto" in finding for finding in findings)
