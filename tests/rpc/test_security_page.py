"""docs/security.md says of every RPC which scope it needs, and of no other."""

from __future__ import annotations

import re
from pathlib import Path

from atelier.rpc.scopes import SCOPE_NAMES, required_scope, scope_name
from tests.harness.calls import INFERENCE, REGISTRY, TRAINER, methods

PAGE = Path(__file__).parents[2] / "docs" / "security.md"
METHODS = methods([*REGISTRY, *TRAINER, *INFERENCE])


def test_table_of_scopes_is_what_the_contracts_say() -> None:
    told = re.findall(r"^\| `(\w+\.\w+)` \| (\w+) \|$", PAGE.read_text(), re.MULTILINE)
    needed = [
        (f"{method.containing_service.name}.{method.name}", scope_name(required_scope(method.full_name)))
        for method in METHODS
    ]
    assert told == needed


def test_every_method_can_be_called_by_somebody() -> None:
    assert {scope_name(required_scope(method.full_name)) for method in METHODS} <= set(SCOPE_NAMES)
