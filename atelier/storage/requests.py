"""Idempotent requests (AIP-155): a repeated `request_id` answers as its first use did.

The record is written in the transaction that does the work, so either both are there or neither is.
"""

from __future__ import annotations

import hashlib
import uuid
from datetime import datetime
from typing import Any

from google.protobuf.message import Message
from sqlalchemy import String
from sqlalchemy.orm import Mapped, Session, mapped_column

from atelier.errors import InvalidArgumentError
from atelier.storage.database import utc_now


class RequestRow:
    """Columns of a service's table of requests; mix into a mapped class named `Request`."""

    __tablename__ = "requests"

    tenant: Mapped[str] = mapped_column(String(63), primary_key=True)
    request_id: Mapped[str] = mapped_column(String(36), primary_key=True)
    fingerprint: Mapped[str] = mapped_column(String(64))
    resource_name: Mapped[str] = mapped_column(String(255))
    create_time: Mapped[datetime] = mapped_column(default=utc_now)


def fingerprint(request: Message) -> str:
    """Digest of a request, by which a repeat is told from another request under the same id."""
    content = request.DESCRIPTOR.full_name.encode() + b"\0" + request.SerializeToString(deterministic=True)
    return hashlib.sha256(content).hexdigest()


def earlier_result(session: Session, table: type[Any], tenant: str, request_id: str, request: Message) -> str | None:
    """Name of the resource that this request made before; None when it is new or has no id."""
    if not request_id:
        return None
    _check(request_id)
    row = session.get(table, (tenant, request_id))
    if row is None:
        return None
    if row.fingerprint != fingerprint(request):
        raise InvalidArgumentError(
            "request_id", "was used for another request; take a fresh UUID", reason="REQUEST_ID_REUSED"
        )
    return row.resource_name


def remember(
    session: Session, table: type[Any], tenant: str, request_id: str, request: Message, resource_name: str
) -> None:
    """Records what a request made, when it has an id."""
    if request_id:
        session.add(
            table(
                tenant=tenant,
                request_id=request_id,
                fingerprint=fingerprint(request),
                resource_name=resource_name,
            )
        )


def _check(request_id: str) -> None:
    try:
        well_formed = str(uuid.UUID(request_id)) == request_id.lower()
    except ValueError:
        well_formed = False
    if not well_formed:
        raise InvalidArgumentError("request_id", "must be a UUID such as 123e4567-e89b-42d3-a456-426614174000")
