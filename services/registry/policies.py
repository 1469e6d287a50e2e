"""Retention policies: what they keep, and how rows and messages say so.

    keep_last  keep_younger_than   kept, besides the newest version and those at which aliases point
    0          unset               all
    n          unset               the n newest
    0          d                   those younger than d
    n          d                   the n newest, and those younger than d

Only versions that are not deleted count among the n newest.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from atelier.errors import InvalidArgumentError
from atelier.pb.registry.v1 import registry_pb2 as pb
from services.registry.tables import AdapterRow

MAX_DAYS = 36_500


@dataclass(frozen=True, kw_only=True, slots=True)
class Policy:
    """Which versions of an adapter are kept."""

    keep_last: int
    keep_younger_than: timedelta | None

    @property
    def keeps_all(self) -> bool:
        """Whether there is nothing to delete, whatever there is."""
        return self.keep_last == 0 and self.keep_younger_than is None

    def not_kept(
        self, versions: Sequence[tuple[int, datetime]], aliased: Container[int], now: datetime
    ) -> Sequence[int]:
        """The numbers of the versions that may go, the oldest first.

        Args:
            versions: number and time of creation of those that are not deleted, the newest first.
            aliased: the numbers at which aliases point.
        """
        if self.keeps_all:
            return []
        oldest = now if self.keep_younger_than is None else now - self.keep_younger_than
        rest = versions[max(self.keep_last, 1) :]
        return [number for number, create_time in reversed(rest) if create_time <= oldest and number not in aliased]


def parse(message: pb.RetentionPolicy, field: str) -> Policy:
    """The policy that a request brings; an unset one keeps all."""
    if message.keep_last < 0:
        raise InvalidArgumentError(f"{field}.keep_last", f"is {message.keep_last}; it must be 0 (all) or more")
    if not message.HasField("keep_younger_than"):
        return Policy(keep_last=message.keep_last, keep_younger_than=None)
    age = message.keep_younger_than
    if not 1 <= age.seconds <= MAX_DAYS * 86_400 or not 0 <= age.nanos < 10**9:
        raise InvalidArgumentError(
            f"{field}.keep_younger_than", f"is out of range; allowed are 1 second to {MAX_DAYS} days"
        )
    return Policy(keep_last=message.keep_last, keep_younger_than=age.ToTimedelta())


def of(row: AdapterRow) -> Policy:
    """The adapter's own policy."""
    return Policy(keep_last=row.keep_last, keep_younger_than=row.keep_younger_than)


def write(row: AdapterRow, policy: Policy) -> None:
    """Makes it the adapter's own."""
    row.keep_last, row.keep_younger_than = policy.keep_last, policy.keep_younger_than


def to_message(row: AdapterRow) -> pb.RetentionPolicy | None:
    """The adapter's own policy as the API tells it; None when it keeps all."""
    if of(row).keeps_all:
        return None
    message = pb.RetentionPolicy(keep_last=row.keep_last)
    if row.keep_younger_than is not None:
        message.keep_younger_than.FromTimedelta(row.keep_younger_than)
    return message
