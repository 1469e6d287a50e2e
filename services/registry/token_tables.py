"""What the registry keeps of bearer tokens: never their secrets, only SHA-256 of them.

A secret has 256 random bits, so that a plain digest cannot be reversed by guessing.
"""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import JSON, Index, String
from sqlalchemy.orm import Mapped, mapped_column

from atelier.storage.database import utc_now
from services.registry.tables import Table


class TokenRow(Table):
    """A token; the row is deleted when it is revoked."""

    __tablename__ = "tokens"
    __table_args__ = (
        Index("tokens_by_secret", "secret_sha256", unique=True),
        Index("tokens_by_old_secret", "old_secret_sha256"),
    )

    tenant: Mapped[str] = mapped_column(String(63), primary_key=True)
    token_id: Mapped[str] = mapped_column(String(63), primary_key=True)
    scopes: Mapped[list[str]] = mapped_column(JSON)
    """Names of Scope without the prefix, such as READER."""
    description: Mapped[str] = mapped_column(String(200))
    secret_sha256: Mapped[str] = mapped_column(String(64))
    old_secret_sha256: Mapped[str | None] = mapped_column(String(64))
    old_expire_time: Mapped[datetime | None]
    """When the secret before the present one ends to work."""
    create_time: Mapped[datetime] = mapped_column(default=utc_now)
    rotate_time: Mapped[datetime] = mapped_column(default=utc_now)
    expire_time: Mapped[datetime]
