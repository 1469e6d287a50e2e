"""The contracts: checked-in stubs are what the protos say, and the protos keep the rules of buf.yaml and of AIPs."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import atelier.pb
from atelier.rpc.scopes import READER, required_scope
from tests.harness.calls import INFERENCE, REGISTRY, TRAINER, fields_of, methods
from tools.generate_stubs import PROTOS, generate
from tools.lint_protos import lint

WITHOUT_REQUEST_ID = {
    "WriteUpload": "its offset tells a repeat",
    "CreateToken": "the secret of the first answer is not kept",
    "RotateToken": "the secret of the first answer is not kept",
    "RevokeToken": "a repeat is NOT_FOUND, and done is done",
    "CollectGarbage": "a repeat collects what has become garbage since",
    "Scrub": "a repeat goes on with what is unread for longest",
    "VerifyToken": "it reads",
}
WITHOUT_VALIDATE_ONLY = {
    "WriteUpload": "bytes of an upload are nothing until it is completed",
    "Scrub": "it reports",
    "VerifyToken": "it reads",
}
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


@pytest.mark.parametrize(
    ("field", "without"), [("request_id", WITHOUT_REQUEST_ID), ("validate_only", WITHOUT_VALIDATE_ONLY)]
)
def test_every_mutating_rpc_can_be_retried_and_tried_out(field: str, without: dict[str, str]) -> None:
    """Of all services; what takes no more than READER, or is a Get or List, changes nothing."""
    mutating = [
        each
        for each in methods([*REGISTRY, *TRAINER, *INFERENCE])
        if required_scope(each.full_name) != READER and not each.name.startswith(("Get", "List"))
    ]
    assert {each.name for each in mutating if field not in fields_of(each)} == without.keys()


def test_a_broken_rule_is_found_and_placed(tmp_path: Path) -> None:
    protos = tmp_path / "protos"
    shutil.copytree(PROTOS, protos)
    contract = protos / "atelier" / "registry" / "v1" / "registry.proto"
    contract.write_text(contract.read_text() + "\nmessage undocumentedMessage {}\n")
    findings = lint(protos)
    assert len(findings) == 2
    assert all("atelier/registry/v1/registry.proto" in finding for finding in findings)
