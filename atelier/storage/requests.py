"""Mutating requests: idempotent by `request_id` (AIP-155), without effect under `validate_only` (AIP-163).

A repeated `request_id` gets the first answer, byte for byte; the same id with another request is an error. The answer
is recorded in the transaction that does the work, so either both are there or neither is. Answers are kept for a week:
after that the same id is a new request.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any, TypeVar

from google.protobuf.message import Message
from sqlalchemy import Index, LargeBinary, String, delete
from sqlalchemy.orm import Mapped, Session, declared_attr, mapped_column

from atelier.errors import AbortedError, InvalidArgumentError
from atelier.rpc.call import current_tenant
from atelier.storage.database import WRITE_CONFLICT, Database, utc_now

Answer = TypeVar("Answer", bound=Message)
ATTEMPTS = 5
KEPT = timedelta(days=7)
"""How long answers are kept, by whoever calls `forget_old`."""


class RequestRow:
    """Columns of a service's table of requests; mix into a mapped class."""

    __tablename__ = "requests"

    @declared_attr.directive
    @classmethod
    def __table_args__(cls) -> tuple[Index, ...]:
        return (Index("requests_by_time", "create_time"),)

    tenant: Mapped[str] = mapped_column(String(63), primary_key=True)
    request_id: Mapped[str] = mapped_column(String(36), primary_key=True)
    fingerprint: Mapped[str] = mapped_column(String(64))
    answer: Mapped[bytes] = mapped_column(LargeBinary)
    """The response message, serialized."""
    create_time: Mapped[datetime] = mapped_column(default=utc_now)


class _ValidatedOnly(Exception):
    """Ends a transaction that must leave nothing behind."""


def perform(
    database: Database, table: type[Any], request: Any, kind: type[Answer], work: Callable[[Session], Answer]
) -> Answer:
    """Does the work of a mutating request in one transaction, or answers as its first use did.

    Args:
        table: the service's table of requests.
        request: a message with `request_id` and `validate_only`.
        kind: the answer's message class.
        work: makes the answer; may run several times, since it is tried again when somebody else wrote the same.

    Raises:
        InvalidArgumentError: `request_id` is no UUID, or was used for another request.
        AbortedError: somebody else was faster, again and again.
    """
    for attempt in range(ATTEMPTS):
        try:
            return _perform_once(database, table, request, kind, work)
        except AbortedError as error:
            if error.reason != WRITE_CONFLICT or attempt == ATTEMPTS - 1:
                raise
    raise AssertionError("the last attempt returns or raises")


def _perform_once(
    database: Database, table: type[Any], request: Any, kind: type[Answer], work: Callable[[Session], Answer]
) -> Answer:
    try:
        with database.transaction() as session:
            earlier = earlier_answer(session, table, request, kind)
            if earlier is not None:
                return earlier
            claim = _claim(session, table, request)
            answer = work(session)
            session.flush()
            if request.validate_only:
                raise _ValidatedOnly
            if claim is not None:
                claim.answer = answer.SerializeToString(deterministic=True)
    except _ValidatedOnly:
        pass
    return answer


def earlier_answer(session: Session, table: type[Any], request: Any, kind: type[Answer]) -> Answer | None:
    """What this request was answered before; None when it is new, or has no id."""
    if not request.request_id:
        return None
    _check(request.request_id)
    row = session.get(table, (current_tenant(), request.request_id))
    if row is None:
        return None
    if row.fingerprint != fingerprint(request):
        raise InvalidArgumentError(
            "request_id", "was used for another request; take a fresh UUID", reason="REQUEST_ID_REUSED"
        )
    return kind.FromString(row.answer)


def forget_old(session: Session, table: type[Any], before: datetime) -> None:
    """Removes the answers that were given before that moment."""
    session.execute(delete(table).where(table.create_time < before))


def _claim(session: Session, table: type[Any], request: Any) -> Any:
    """The row of a request's answer, put in before the work: whoever sends the same request now waits for that answer.

    Without it, two of the same on PostgreSQL would both begin, and the slower one fail for what the faster one did.
    """
    if not request.request_id:
        return None
    row = _row(table, request, b"")
    session.add(row)
    session.flush()
    return row


def _row(table: type[Any], request: Any, answer: bytes) -> Any:
    return table(
        tenant=current_tenant(),
        request_id=request.request_id,
        fingerprint=fingerprint(request),
        answer=answer,
        create_time=utc_now(),
    )


def fingerprint(request: Message) -> str:
    """Digest of a request, by which a repeat is told from another request under the same id."""
    content = request.DESCRIPTOR.full_name.encode() + b"\0" + request.SerializeToString(deterministic=True)
    return hashlib.sha256(content).hexdigest()


def _check(request_id: str) -> None:
    try:
        well_formed = str(uuid.UUID(request_id)) == request_id.lower()
    except ValueError:
        well_formed = False
    if not well_formed:
        raise InvalidArgumentError("request_id", "must be a UUID such as 123e4567-e89b-42d3-a456-426614174000")
