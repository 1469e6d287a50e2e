"""Contents: whose they are and where their bytes lie. Several versions, of several tenants, may have one content.

Whoever counts a content holds its row's lock, taken in the order of the SHA-256s and flushed one by one, so that on
PostgreSQL the count that is read under the lock is the newest. A content without a version is kept for the grace
period (`garbage`), in which a version may take it up again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence

from sqlalchemy import exists, select
from sqlalchemy.orm import Session

from atelier.storage.database import utc_now
from services.registry import quota
from services.registry.content_tables import BlobRow, TenantBlobRow, TenantRow
from services.registry.storing import StoredFile
from services.registry.tables import VersionRow


def places(session: Session, stored: Sequence[StoredFile]) -> dict[str, int]:
    """Under which keys those of the contents lie that are there already, and their sizes."""
    sha256s = {file.sha256 for file in stored}
    query = select(BlobRow.object_key, BlobRow.size_bytes).where(BlobRow.sha256.in_(sha256s))
    return {row.object_key: row.size_bytes for row in session.execute(query)}


def attach(session: Session, owner: TenantRow, stored: Sequence[StoredFile], lost: Collection[str]) -> None:
    """Counts a new version and its contents for its tenant, whose row is locked. New contents lie where `stored` says.

    Of contents that are there already the older object stays, for whoever is reading it, unless it was found rotten or
    its key is one of `lost`: then the new one takes its place, for all versions. `unused` tells which of `stored` are
    in nobody's use.
    """
    owner.version_count += 1
    counts = Counter(file.sha256 for file in stored)
    files = {file.sha256: file for file in stored}
    for sha256 in sorted(counts):
        blob = _lock(session, sha256)
        if blob is None:
            session.add(_new_row(files[sha256]))
        else:
            _take_up(blob, files[sha256], lost)
        _count(session, owner, files[sha256], counts[sha256])
        session.flush()


def detach(session: Session, version: VersionRow) -> None:
    """Counts a version that goes for good, and its contents, no longer for its tenant. Its adapter's row is locked."""
    owner = quota.lock(session, version.tenant)
    owner.version_count -= 1
    counts = Counter(file.sha256 for file in version.files)
    for sha256 in sorted(counts):
        blob = _lock(session, sha256)
        share = session.get(TenantBlobRow, (owner.tenant, sha256))
        assert blob is not None, "a version's contents are there"
        assert share is not None, "a version's contents are counted"
        share.file_count -= counts[sha256]
        if share.file_count == 0:
            session.delete(share)
            owner.stored_bytes -= blob.size_bytes
            session.flush()
            if not has_owner(session, sha256):
                blob.unreferenced_time = utc_now()


def mark_rotten(session: Session, sha256: str, object_key: str) -> None:
    """Remembers that a content's bytes are not what they were, unless they lie under another key by now."""
    blob = _lock(session, sha256)
    if blob is not None and blob.object_key == object_key:
        blob.rot_time = blob.rot_time or utc_now()


def has_owner(session: Session, sha256: str) -> bool:
    """Whether any tenant has this content. Its row is locked."""
    return bool(session.scalar(select(exists().where(TenantBlobRow.sha256 == sha256))))


def unused(session: Session, stored: Sequence[StoredFile]) -> list[StoredFile]:
    """Those of the files whose objects no row names."""
    used = named_keys(session, [file.object_key for file in stored])
    return [file for file in stored if file.object_key not in used]


def named_keys(session: Session, keys: Sequence[str]) -> set[str]:
    """Those of the objects' keys that a row names."""
    return set(session.scalars(select(BlobRow.object_key).where(BlobRow.object_key.in_(keys))))


def _lock(session: Session, sha256: str) -> BlobRow | None:
    query = select(BlobRow).where(BlobRow.sha256 == sha256).with_for_update()
    return session.scalar(query.execution_options(populate_existing=True))


def _take_up(blob: BlobRow, file: StoredFile, lost: Collection[str]) -> None:
    blob.unreferenced_time = None
    if blob.rot_time is not None or blob.object_key in lost:
        blob.object_key, blob.rot_time, blob.scrub_time = file.object_key, None, utc_now()


def _new_row(file: StoredFile) -> BlobRow:
    now = utc_now()
    return BlobRow(
        sha256=file.sha256, size_bytes=file.size_bytes, object_key=file.object_key, create_time=now, scrub_time=now
    )


def _count(session: Session, owner: TenantRow, file: StoredFile, count: int) -> None:
    share = session.get(TenantBlobRow, (owner.tenant, file.sha256))
    if share is None:
        session.add(TenantBlobRow(tenant=owner.tenant, sha256=file.sha256, file_count=count))
        owner.stored_bytes += file.size_bytes
    else:
        share.file_count += count
