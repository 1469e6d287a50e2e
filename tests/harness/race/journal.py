"""What clients set out to do and what came of it, written so that a client that is killed leaves what it knew.

Every operation is written twice: before it begins and when its outcome is known. Of one that was written once only,
nobody knows what came of it.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any


class Outcome(StrEnum):
    """What a client was told."""

    DONE = "done"
    REFUSED = "refused"
    UNKNOWN = "unknown"
    """The answer was lost, or the client was."""


@dataclass(kw_only=True, slots=True)
class Operation:
    """One call, tried again under the same request_id while its answer was lost."""

    request_id: str
    kind: str
    """Such as `publish`."""
    tenant: str
    adapter: str
    details: dict[str, Any] = field(default_factory=dict)
    """What it takes to send it again."""
    outcome: Outcome = Outcome.UNKNOWN
    reason: str = ""
    """Of a refusal, or of the last lost answer."""
    answer: str = ""
    """Name of what was made."""


class Journal:
    """A client process's own file."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", buffering=1)
        self._lock = threading.Lock()

    def begin(self, operation: Operation) -> None:
        """Writes what is about to be sent."""
        own = ("request_id", "kind", "tenant", "adapter", "details")
        self._write({name: getattr(operation, name) for name in own})

    def end(self, operation: Operation) -> None:
        """Writes what came of it."""
        own = ("request_id", "outcome", "reason", "answer")
        self._write({name: getattr(operation, name) for name in own})

    def _write(self, record: dict[str, Any]) -> None:
        with self._lock:
            self._file.write(json.dumps(record) + "\n")


def read_journals(folder: Path) -> list[Operation]:
    """All operations of all clients."""
    operations: dict[str, Operation] = {}
    for path in sorted(folder.glob("*.jsonl")):
        for record in _records(path):
            if "kind" in record:
                operations[record["request_id"]] = Operation(**record)
            else:
                operation = operations[record["request_id"]]
                operation.outcome = Outcome(record["outcome"])
                operation.reason, operation.answer = record["reason"], record["answer"]
    return list(operations.values())


def _records(path: Path) -> Iterator[dict[str, Any]]:
    for line in path.read_text().splitlines():
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            return  # the client was killed while it wrote
