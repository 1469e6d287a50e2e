"""What the registry keeps of adapters in SQL. The tenant is part of every key, so no query can reach across tenants.

Lists such as a version's files are loaded when they are looked at, a row's at a time; `loading` loads those of a page.

Whoever changes an adapter, its versions or its aliases locks the adapter's row first (`adapters.lock`), then the
tenant's (`quota.lock`), then contents in the order of their SHA-256 (`contents.attach`): nobody waits in a circle.

Wide indexes begin with what is looked for, not with the tenant: SQLite, which guesses that a tenant has few rows, would
use one that begins with the tenant to find rows by their key.
"""

from __future__ import annotations

import secrets
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import JSON, BigInteger, ForeignKeyConstraint, Index, MetaData, String, Text
from sqlalchemy.orm import Mapped, mapped_column, relationship

from atelier.storage.database import Model, utc_now
from atelier.storage.requests import RequestRow

_ADAPTER = (["tenant", "adapter_id"], ["adapters.tenant", "adapters.adapter_id"])
_VERSION = (["tenant", "adapter_id", "number"], ["versions.tenant", "versions.adapter_id", "versions.number"])


def new_etag() -> str:
    """An etag unlike any before."""
    return secrets.token_hex(8)


class Table(Model):
    """Base class of the registry's tables."""

    __abstract__ = True
    metadata = MetaData()


class AdapterRow(Table):
    """An adapter."""

    __tablename__ = "adapters"
    __table_args__ = (
        Index("adapters_by_time", "tenant", "create_time", "adapter_id"),
        Index("adapters_by_purge_time", "purge_time"),
    )

    tenant: Mapped[str] = mapped_column(String(63), primary_key=True)
    adapter_id: Mapped[str] = mapped_column(String(63), primary_key=True)
    description: Mapped[str] = mapped_column(Text)
    last_number: Mapped[int] = mapped_column(default=0)
    """Of the versions there ever were: numbers are not used again."""
    latest_number: Mapped[int] = mapped_column(default=0)
    """Of the newest version that is not deleted; 0 while there is none."""
    keep_last: Mapped[int] = mapped_column(default=0)
    keep_younger_than: Mapped[timedelta | None]
    etag: Mapped[str] = mapped_column(String(16), default=new_etag)
    create_time: Mapped[datetime] = mapped_column(default=utc_now)
    delete_time: Mapped[datetime | None]
    purge_time: Mapped[datetime | None]
    tags: Mapped[list[TagRow]] = relationship(order_by="TagRow.tag", cascade="all, delete-orphan")


class TagRow(Table):
    """A tag of an adapter."""

    __tablename__ = "tags"
    __table_args__ = (ForeignKeyConstraint(*_ADAPTER), Index("tags_by_tag", "tag", "tenant", "adapter_id"))

    tenant: Mapped[str] = mapped_column(String(63), primary_key=True)
    adapter_id: Mapped[str] = mapped_column(String(63), primary_key=True)
    tag: Mapped[str] = mapped_column(String(63), primary_key=True)


class VersionRow(Table):
    """A version. Only the times of its deletion ever change."""

    __tablename__ = "versions"
    __table_args__ = (
        ForeignKeyConstraint(*_ADAPTER),
        Index("versions_by_digest", "tenant", "digest"),
        Index("versions_by_time", "tenant", "create_time", "adapter_id", "number"),
        Index("versions_by_base_model", "base_model", "tenant", "create_time", "adapter_id", "number"),
        Index("versions_by_base_digest", "base_model_digest", "tenant", "create_time", "adapter_id", "number"),
        Index("versions_by_source_job", "tenant", "source_job"),
        Index("versions_by_purge_time", "purge_time"),
    )

    tenant: Mapped[str] = mapped_column(String(63), primary_key=True)
    adapter_id: Mapped[str] = mapped_column(String(63), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    digest: Mapped[str] = mapped_column(String(71))
    manifest: Mapped[str] = mapped_column(Text, deferred=True)
    """Canonical JSON (`atelier.manifest`), whose SHA-256 is the digest."""
    signatures: Mapped[list[dict[str, str]]] = mapped_column(JSON)
    """Of each: key_id, signature in base64."""
    base_model: Mapped[str] = mapped_column(String(200))
    base_model_digest: Mapped[str] = mapped_column(String(71))
    family: Mapped[str] = mapped_column(String(63))
    method: Mapped[str] = mapped_column(String(63))
    instance_prompt: Mapped[str] = mapped_column(Text)
    weights: Mapped[list[dict[str, Any]]] = mapped_column(JSON)
    """WeightsSummary messages as JSON."""
    source_job: Mapped[str] = mapped_column(String(255))
    create_time: Mapped[datetime] = mapped_column(default=utc_now)
    delete_time: Mapped[datetime | None]
    purge_time: Mapped[datetime | None]
    files: Mapped[list[FileRow]] = relationship(order_by="FileRow.path", cascade="all, delete-orphan")
    metrics: Mapped[list[MetricRow]] = relationship(order_by="MetricRow.name", cascade="all, delete-orphan")
    words: Mapped[list[TriggerWordRow]] = relationship(order_by="TriggerWordRow.word", cascade="all, delete-orphan")


class MetricRow(Table):
    """A score of a version."""

    __tablename__ = "metrics"
    __table_args__ = (
        ForeignKeyConstraint(*_VERSION),
        Index("metrics_by_value", "name", "tenant", "value", "adapter_id", "number"),
    )

    tenant: Mapped[str] = mapped_column(String(63), primary_key=True)
    adapter_id: Mapped[str] = mapped_column(String(63), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    name: Mapped[str] = mapped_column(String(63), primary_key=True)
    value: Mapped[float]


class TriggerWordRow(Table):
    """A word that calls a version up."""

    __tablename__ = "trigger_words"
    __table_args__ = (
        ForeignKeyConstraint(*_VERSION),
        Index("trigger_words_by_word", "word", "tenant", "adapter_id", "number"),
    )

    tenant: Mapped[str] = mapped_column(String(63), primary_key=True)
    adapter_id: Mapped[str] = mapped_column(String(63), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    word: Mapped[str] = mapped_column(String(100), primary_key=True)


class FileRow(Table):
    """A file of a version; its bytes are the content (`content_tables.BlobRow`) with its SHA-256."""

    __tablename__ = "files"
    __table_args__ = (
        ForeignKeyConstraint(*_VERSION),
        ForeignKeyConstraint(["sha256"], ["blobs.sha256"]),
        Index("files_by_content", "sha256", "tenant"),
    )

    tenant: Mapped[str] = mapped_column(String(63), primary_key=True)
    adapter_id: Mapped[str] = mapped_column(String(63), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    path: Mapped[str] = mapped_column(String(200), primary_key=True)
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str] = mapped_column(String(64))


class AliasRow(Table):
    """An alias; its etag is new whenever it moves. It points at a version that is not deleted."""

    __tablename__ = "aliases"
    __table_args__ = (ForeignKeyConstraint(*_VERSION), Index("aliases_by_version", "tenant", "adapter_id", "number"))

    tenant: Mapped[str] = mapped_column(String(63), primary_key=True)
    adapter_id: Mapped[str] = mapped_column(String(63), primary_key=True)
    alias_id: Mapped[str] = mapped_column(String(63), primary_key=True)
    number: Mapped[int]
    etag: Mapped[str] = mapped_column(String(16), default=new_etag)
    update_time: Mapped[datetime] = mapped_column(default=utc_now)


class AliasMoveRow(Table):
    """A move of an alias. Rows are added, and go when their adapter is purged."""

    __tablename__ = "alias_moves"
    __table_args__ = (
        ForeignKeyConstraint(*_ADAPTER),
        Index("alias_moves_by_adapter", "tenant", "adapter_id", "id"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    tenant: Mapped[str] = mapped_column(String(63))
    adapter_id: Mapped[str] = mapped_column(String(63))
    alias_id: Mapped[str] = mapped_column(String(63))
    old_number: Mapped[int | None]
    new_number: Mapped[int | None]
    subject: Mapped[str] = mapped_column(String(255))
    move_time: Mapped[datetime] = mapped_column(default=utc_now)


class BaseModelRow(Table):
    """A base model, known to all tenants."""

    __tablename__ = "base_models"

    digest: Mapped[str] = mapped_column(String(71), primary_key=True)
    model: Mapped[str] = mapped_column(String(200))
    family: Mapped[str] = mapped_column(String(63))
    components: Mapped[list[dict[str, Any]]] = mapped_column(JSON, deferred=True)
    """Component messages as JSON."""
    create_time: Mapped[datetime] = mapped_column(default=utc_now)


class Request(RequestRow, Table):
    """Requests that carried a `request_id`."""
