"""What the registry keeps in SQL about bytes: contents, who has them, and uploads that go on.

A content's bytes lie in S3 under the key of its row, and every time that a content is stored anew it gets another key.
So whoever deletes an object late deletes bytes that no row refers to, never those of a content that has come back.
"""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import BigInteger, ForeignKeyConstraint, Index, LargeBinary, String
from sqlalchemy.orm import Mapped, mapped_column

from atelier.storage.database import utc_now
from services.registry.tables import Table


class BlobRow(Table):
    """A content, of whichever tenants have it."""

    __tablename__ = "blobs"
    __table_args__ = (
        Index("blobs_unreferenced", "unreferenced_time"),
        Index("blobs_by_scrub", "scrub_time"),
        Index("blobs_by_key", "object_key"),
    )

    sha256: Mapped[str] = mapped_column(String(64), primary_key=True)
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    object_key: Mapped[str] = mapped_column(String(255))
    create_time: Mapped[datetime] = mapped_column(default=utc_now)
    unreferenced_time: Mapped[datetime | None]
    """Since when no version has it; None while one has."""
    scrub_time: Mapped[datetime] = mapped_column(default=utc_now)
    """When its bytes were last found to have its SHA-256."""
    rot_time: Mapped[datetime | None]
    """Since when its bytes are known to be missing or changed; None while they are not."""


class TenantRow(Table):
    """What a tenant stores, and may store; there is one for each tenant that has begun to publish or has a quota."""

    __tablename__ = "tenants"

    tenant: Mapped[str] = mapped_column(String(63), primary_key=True)
    stored_bytes: Mapped[int] = mapped_column(BigInteger, default=0)
    version_count: Mapped[int] = mapped_column(BigInteger, default=0)
    max_stored_bytes: Mapped[int | None] = mapped_column(BigInteger)
    """None means the server's default, 0 no limit."""
    max_versions: Mapped[int | None] = mapped_column(BigInteger)


class TenantBlobRow(Table):
    """That a tenant has a content, in so many files."""

    __tablename__ = "tenant_blobs"
    __table_args__ = (ForeignKeyConstraint(["sha256"], ["blobs.sha256"]),)

    tenant: Mapped[str] = mapped_column(String(63), primary_key=True)
    sha256: Mapped[str] = mapped_column(String(64), primary_key=True)
    file_count: Mapped[int]


class UploadRow(Table):
    """An upload that may be resumed, on any replica."""

    __tablename__ = "uploads"
    __table_args__ = (Index("uploads_by_expire_time", "expire_time"),)

    tenant: Mapped[str] = mapped_column(String(63), primary_key=True)
    upload_id: Mapped[str] = mapped_column(String(63), primary_key=True)
    request: Mapped[bytes] = mapped_column(LargeBinary)
    """The CreateUploadRequest, serialized."""
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    """Of all its files, as they were declared."""
    create_time: Mapped[datetime] = mapped_column(default=utc_now)
    expire_time: Mapped[datetime]


class UploadPartRow(Table):
    """Some bytes of a file of an upload, in S3 under a key of their own until the upload ends."""

    __tablename__ = "upload_parts"
    __table_args__ = (
        ForeignKeyConstraint(["tenant", "upload_id"], ["uploads.tenant", "uploads.upload_id"], ondelete="CASCADE"),
    )

    tenant: Mapped[str] = mapped_column(String(63), primary_key=True)
    upload_id: Mapped[str] = mapped_column(String(63), primary_key=True)
    path: Mapped[str] = mapped_column(String(200), primary_key=True)
    offset_bytes: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    object_key: Mapped[str] = mapped_column(String(255))
