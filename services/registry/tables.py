"""What the registry keeps in SQL. The tenant is part of every key, so no query can reach across tenants by an id."""

from __future__ import annotations

import secrets
from datetime import datetime

from sqlalchemy import JSON, BigInteger, ForeignKeyConstraint, Index, MetaData, String, Text
from sqlalchemy.orm import Mapped, mapped_column, relationship

from atelier.storage.database import Model, utc_now
from atelier.storage.requests import RequestRow


def new_etag() -> str:
    """An etag unlike any before."""
    return secrets.token_hex(8)


class Table(Model):
    """Base class of the registry's tables."""

    __abstract__ = True
    metadata = MetaData()


class AdapterRow(Table):
    """An adapter. `latest_number` counts its versions; 0 while there is none."""

    __tablename__ = "adapters"

    tenant: Mapped[str] = mapped_column(String(63), primary_key=True)
    adapter_id: Mapped[str] = mapped_column(String(63), primary_key=True)
    description: Mapped[str] = mapped_column(Text)
    latest_number: Mapped[int] = mapped_column(default=0)
    etag: Mapped[str] = mapped_column(String(16), default=new_etag)
    create_time: Mapped[datetime] = mapped_column(default=utc_now)


class VersionRow(Table):
    """A version. Rows are added and never changed."""

    __tablename__ = "versions"
    __table_args__ = (
        ForeignKeyConstraint(["tenant", "adapter_id"], ["adapters.tenant", "adapters.adapter_id"]),
        Index("versions_by_digest", "tenant", "digest"),
    )

    tenant: Mapped[str] = mapped_column(String(63), primary_key=True)
    adapter_id: Mapped[str] = mapped_column(String(63), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    digest: Mapped[str] = mapped_column(String(71))
    base_model: Mapped[str] = mapped_column(Text)
    base_model_digest: Mapped[str] = mapped_column(String(71))
    method: Mapped[str] = mapped_column(String(63))
    instance_prompt: Mapped[str] = mapped_column(Text)
    metrics: Mapped[dict[str, float]] = mapped_column(JSON)
    source_job: Mapped[str] = mapped_column(String(255))
    create_time: Mapped[datetime] = mapped_column(default=utc_now)
    files: Mapped[list[FileRow]] = relationship(order_by="FileRow.path", lazy="selectin")


class FileRow(Table):
    """A file of a version; the bytes are in S3 under their SHA-256."""

    __tablename__ = "files"
    __table_args__ = (
        ForeignKeyConstraint(
            ["tenant", "adapter_id", "number"], ["versions.tenant", "versions.adapter_id", "versions.number"]
        ),
        Index("files_by_content", "tenant", "sha256"),
    )

    tenant: Mapped[str] = mapped_column(String(63), primary_key=True)
    adapter_id: Mapped[str] = mapped_column(String(63), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    path: Mapped[str] = mapped_column(String(200), primary_key=True)
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str] = mapped_column(String(64))


class AliasRow(Table):
    """An alias; its etag is new whenever it moves."""

    __tablename__ = "aliases"
    __table_args__ = (
        ForeignKeyConstraint(
            ["tenant", "adapter_id", "number"], ["versions.tenant", "versions.adapter_id", "versions.number"]
        ),
    )

    tenant: Mapped[str] = mapped_column(String(63), primary_key=True)
    adapter_id: Mapped[str] = mapped_column(String(63), primary_key=True)
    alias_id: Mapped[str] = mapped_column(String(63), primary_key=True)
    number: Mapped[int]
    etag: Mapped[str] = mapped_column(String(16), default=new_etag)
    update_time: Mapped[datetime] = mapped_column(default=utc_now)


class Request(RequestRow, Table):
    """Requests that carried a `request_id`."""
