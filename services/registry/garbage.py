"""Garbage collection: what nobody has any more, or never came to have.

Safe while everything else goes on, by several collectors at once, and when killed anywhere:

- A content's row goes first, under its lock and only while no tenant has it; its object goes after the commit. A
  content that comes back meanwhile gets another row and another key, so a late deletion cannot hurt it.
- An object that no row names belongs to a call that goes on, or to nothing. No version is committed whose objects are
  older than half the grace period (`commit`), so what is older than the whole belongs to nothing. The clocks of the
  registry and of the object store must agree to within the other half.

A bucket belongs to one registry: objects of another one's would be garbage here. Only keys that begin with
`registry/` are looked at; contents from before there were such keys lose their rows, never their objects.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import islice
from typing import TypeVar

from sqlalchemy import ColumnElement, delete, func, or_, select, tuple_
from sqlalchemy.orm import Session

from atelier.errors import AbortedError
from atelier.pb.registry.v1 import maintenance_pb2 as pb
from atelier.storage.blobs import BlobEntry, BlobStore
from atelier.storage.database import WRITE_CONFLICT, Database, utc_now
from services.registry import contents, deletion, metrics, upload_rows
from services.registry.content_tables import BlobRow, UploadRow
from services.registry.storing import BLOBS_PREFIX
from services.registry.tables import AdapterRow, VersionRow

BATCH = 500
"""Rows or objects that are looked at together."""
PREFIX = "registry/"
Item = TypeVar("Item")


@dataclass(frozen=True, kw_only=True, slots=True)
class GarbageConfig:
    """How long garbage stays."""

    grace_seconds: float = 24 * 3600.0
    """At least twice the longest call (`atelier.rpc.server.ServerConfig.max_unary_seconds`)."""

    def __post_init__(self) -> None:
        if self.grace_seconds <= 0:
            raise ValueError(f"grace_seconds: is {self.grace_seconds}; it must be positive")


class Collector:
    """Collects garbage. All methods block."""

    def __init__(self, config: GarbageConfig, database: Database, blobs: BlobStore) -> None:
        self._config = config
        self._database = database
        self._blobs = blobs

    def collect(self) -> pb.CollectGarbageResponse:
        """Removes what must go."""
        now = utc_now()
        cutoff = now - timedelta(seconds=self._config.grace_seconds)
        done = pb.CollectGarbageResponse(upload_count=self.remove_uploads(now))
        purged = self._purge(now)
        done.version_count, done.adapter_count = purged.versions, purged.adapters
        done.blob_count, done.blob_bytes = self.remove_contents(cutoff)
        done.orphan_count = self._remove_orphans(cutoff)
        for field, number in done.ListFields():
            metrics.COLLECTED.labels(field.name).inc(number)
        return done

    def count(self) -> pb.CollectGarbageResponse:
        """Counts what would go."""
        now = utc_now()
        cutoff = now - timedelta(seconds=self._config.grace_seconds)
        blobs = select(func.count(), func.coalesce(func.sum(BlobRow.size_bytes), 0)).where(_is_old(cutoff))
        due = select(AdapterRow.tenant, AdapterRow.adapter_id).where(AdapterRow.purge_time <= now)
        of_due = tuple_(VersionRow.tenant, VersionRow.adapter_id).in_(due)
        with self._database.transaction(read_only=True) as session:
            blob_count, blob_bytes = session.execute(blobs).one()
            counted = pb.CollectGarbageResponse(
                blob_count=blob_count,
                blob_bytes=int(blob_bytes),
                upload_count=_count(session, UploadRow, UploadRow.expire_time <= now),
                adapter_count=_count(session, AdapterRow, AdapterRow.purge_time <= now),
                version_count=_count(session, VersionRow, or_(VersionRow.purge_time <= now, of_due)),
            )
        counted.orphan_count = sum(map(len, self._orphans(cutoff)))
        counted.orphan_count += self._blobs.count_uploads(PREFIX, older_than=cutoff)
        return counted

    def remove_uploads(self, now: datetime) -> int:
        """Removes uploads whose time is over: the rows, then the objects. Returns how many."""
        with self._database.transaction(read_only=True) as session:
            rows = session.scalars(select(UploadRow).where(UploadRow.expire_time <= now)).all()
        for row in rows:
            own = (UploadRow.tenant == row.tenant, UploadRow.upload_id == row.upload_id)
            with self._database.transaction() as session:
                session.execute(delete(UploadRow).where(*own))
            self._blobs.delete_many(self._blobs.keys(_folder(row)))
        return len(rows)

    def _purge(self, now: datetime) -> deletion.PurgeCounts:
        """Removes deleted versions and adapters whose time is over; their contents' grace period begins."""
        versions = adapters = 0
        while True:
            with self._database.transaction() as session:
                purged = deletion.purge_expired(session, now, limit=BATCH)
            if not (purged.versions or purged.adapters):
                return deletion.PurgeCounts(versions=versions, adapters=adapters)
            versions, adapters = versions + purged.versions, adapters + purged.adapters

    def remove_contents(self, cutoff: datetime) -> tuple[int, int]:
        """Removes contents that no version has had since then. Returns how many, and their bytes."""
        count = size_bytes = 0
        with self._database.transaction(read_only=True) as session:
            old = session.scalars(select(BlobRow.sha256).where(_is_old(cutoff))).all()
        for batch in _batches(old):
            removed = [blob for sha256 in batch if (blob := self._remove_row(sha256, cutoff)) is not None]
            keys = [blob.object_key for blob in removed if blob.object_key.startswith(BLOBS_PREFIX)]
            self._blobs.delete_many(keys)
            count += len(removed)
            size_bytes += sum(blob.size_bytes for blob in removed)
        return count, size_bytes

    def _remove_row(self, sha256: str, cutoff: datetime) -> BlobRow | None:
        """Removes a content's row, unless somebody has taken the content up."""
        try:
            with self._database.transaction() as session:
                query = select(BlobRow).where(BlobRow.sha256 == sha256, _is_old(cutoff))
                blob = session.scalar(query.with_for_update())
                # A second statement, which on PostgreSQL sees what was committed while the first waited for the lock.
                if blob is None or contents.has_owner(session, sha256):
                    return None
                session.delete(blob)
        except AbortedError as error:
            if error.reason != WRITE_CONFLICT:
                raise
            return None
        return blob

    def _remove_orphans(self, cutoff: datetime) -> int:
        """Removes objects that belong to nothing since then, and parts of objects that never came to be."""
        count = 0
        for batch in self._orphans(cutoff):
            self._blobs.delete_many(entry.key for entry in batch)
            count += len(batch)
        return count + self._blobs.abort_uploads(PREFIX, older_than=cutoff)

    def _orphans(self, cutoff: datetime) -> Iterator[list[BlobEntry]]:
        yield from self._without_owner(BLOBS_PREFIX, cutoff, lambda entry: entry.key, contents.named_keys)
        yield from self._without_owner(upload_rows.FOLDER, cutoff, _upload_of, _ongoing_uploads)

    def _without_owner(
        self,
        prefix: str,
        cutoff: datetime,
        owner_of: Callable[[BlobEntry], Item],
        find_owners: Callable[[Session, list[Item]], set[Item]],
    ) -> Iterator[list[BlobEntry]]:
        old = (entry for entry in self._blobs.entries(prefix) if entry.modified_time < cutoff)
        for batch in _batches(old):
            with self._database.transaction(read_only=True) as session:
                owners = find_owners(session, [owner_of(entry) for entry in batch])
            yield [entry for entry in batch if owner_of(entry) not in owners]


def _is_old(cutoff: datetime) -> ColumnElement[bool]:
    return BlobRow.unreferenced_time <= cutoff


def _ongoing_uploads(session: Session, ids: list[tuple[str, str]]) -> set[tuple[str, str]]:
    columns = (UploadRow.tenant, UploadRow.upload_id)
    found = session.execute(select(*columns).where(tuple_(*columns).in_(ids)))
    return {(tenant, upload_id) for tenant, upload_id in found}


def _folder(row: UploadRow) -> str:
    return f"{upload_rows.FOLDER}{row.tenant}/{row.upload_id}/"


def _upload_of(entry: BlobEntry) -> tuple[str, str]:
    """Tenant and upload in the key of an upload's object."""
    tenant, upload_id, _ = entry.key.removeprefix(upload_rows.FOLDER).split("/", 2)
    return tenant, upload_id


def _count(session: Session, table: type[UploadRow | AdapterRow | VersionRow], condition: ColumnElement[bool]) -> int:
    return session.scalar(select(func.count()).select_from(table).where(condition)) or 0


def _batches(items: Iterable[Item]) -> Iterator[list[Item]]:
    iterator = iter(items)
    while batch := list(islice(iterator, BATCH)):
        yield batch
