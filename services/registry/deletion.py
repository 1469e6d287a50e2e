"""Deletion that can be undone (AIP-164), and its end: purging.

What is deleted keeps its rows, contents and quota until it is purged: by PurgeDeleted, or by the janitor once its
`purge_time` is past. A version at which an alias points cannot be deleted. A deleted adapter keeps its aliases, which
nothing shows or resolves until it is undeleted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, delete, func, select, true, tuple_, union
from sqlalchemy.orm import Session

from atelier.errors import AlreadyExistsError, FailedPreconditionError
from atelier.pb.registry.v1 import registry_pb2 as pb
from atelier.rpc.names import ADAPTER, ALIAS, TENANT, VERSION
from atelier.storage.database import utc_now
from services.registry import adapters, contents, quota, versions
from services.registry.adapters import within
from services.registry.content_tables import BlobRow
from services.registry.tables import AdapterRow, AliasMoveRow, AliasRow, FileRow, VersionRow, new_etag

DELETE_GRACE = timedelta(days=30)
"""How long what is deleted can be undeleted, unless the registry is told otherwise."""
MAX_PURGED = 1000
"""Adapters, and versions, in one PurgeDeleted call."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PurgeCounts:
    """How much was removed for good."""

    adapters: int = 0
    versions: int = 0


def delete_adapter(session: Session, request: pb.DeleteAdapterRequest, *, grace: timedelta) -> pb.Adapter:
    """Deletes an adapter."""
    row = adapters.lock(session, *ADAPTER.parse(request.name, "name").values())
    adapters.check_etag(row, request.etag, "etag")
    if row.latest_number and not request.force:
        name = ADAPTER.format(tenant=row.tenant, adapter=row.adapter_id)
        raise FailedPreconditionError(
            f"force: {name} has versions; set force to delete them with it",
            reason="ADAPTER_HAS_VERSIONS",
            metadata={"adapter": name},
        )
    _mark_deleted(row, grace)
    row.etag = new_etag()
    return adapters.to_message(row)


def undelete_adapter(session: Session, request: pb.UndeleteAdapterRequest) -> pb.Adapter:
    """Brings an adapter back. Its versions that were deleted by themselves stay so."""
    row = adapters.lock(session, *ADAPTER.parse(request.name, "name").values(), deleted=True)
    if row.delete_time is None:
        raise _not_deleted("adapter", ADAPTER.format(tenant=row.tenant, adapter=row.adapter_id))
    row.delete_time = row.purge_time = None
    row.etag = new_etag()
    return adapters.to_message(row)


def delete_version(session: Session, request: pb.DeleteVersionRequest, *, grace: timedelta) -> pb.Version:
    """Deletes a version at which no alias points."""
    ids = VERSION.parse(request.name, "name")
    adapter = adapters.lock(session, ids["tenant"], ids["adapter"])
    row = versions.find(session, *ids.values())
    _refuse_aliased(session, row)
    _mark_deleted(row, grace)
    _renew_latest(session, adapter)
    return versions.to_message(row)


def undelete_version(session: Session, request: pb.UndeleteVersionRequest) -> pb.Version:
    """Brings a version back, under its number."""
    ids = VERSION.parse(request.name, "name")
    adapter = adapters.lock(session, ids["tenant"], ids["adapter"])
    row = versions.find(session, *ids.values(), deleted=True)
    if row.delete_time is None:
        raise _not_deleted("version", VERSION.format(**ids))
    row.delete_time = row.purge_time = None
    _renew_latest(session, adapter)
    return versions.to_message(row)


def purge_deleted(session: Session, request: pb.PurgeDeletedRequest) -> pb.PurgeDeletedResponse:
    """Removes what the caller has deleted, the oldest versions first; at most MAX_PURGED a call."""
    if request.parent.count("/") > 1:
        ids = ADAPTER.parse(request.parent, "parent")
        adapters.find(session, *ids.values(), deleted=True)
        chosen = AdapterRow.adapter_id == ids["adapter"]
    else:
        ids = TENANT.parse(request.parent, "parent")
        chosen = true()
    query = select(AdapterRow).where(chosen, _has_due(None, ids["tenant"])).order_by(AdapterRow.adapter_id)
    # All adapters are locked before the tenant is.
    query = query.limit(MAX_PURGED).with_for_update().execution_options(populate_existing=True)
    response = pb.PurgeDeletedResponse()
    for row in session.scalars(query).all():
        if len(response.versions) < MAX_PURGED:
            _purge(session, row, None, MAX_PURGED - len(response.versions), response)
    return response


def purge_expired(session: Session, now: datetime, *, limit: int) -> PurgeCounts:
    """Removes from one adapter what is past its purge time, at most `limit` versions; none when nothing is left to do.

    An adapter that somebody else has locked is left for another time.
    """
    query = select(AdapterRow).where(_has_due(now)).limit(1).with_for_update(skip_locked=True)
    row = session.scalar(query)
    response = pb.PurgeDeletedResponse()
    if row is not None:
        _purge(session, row, now, limit, response)
    return PurgeCounts(adapters=len(response.adapters), versions=len(response.versions))


def _has_due(now: datetime | None, tenant: str | None = None) -> ColumnElement[bool]:
    """Of an adapter: that it is to be purged, or a version of it. At `now`, or for None whenever that would be."""
    keys = []
    for table in (AdapterRow, VersionRow):
        query = select(table.tenant, table.adapter_id).where(_is_due(table, now))
        keys.append(query if tenant is None else query.where(table.tenant == tenant))
    return tuple_(AdapterRow.tenant, AdapterRow.adapter_id).in_(union(*keys))


def _is_due(table: type[AdapterRow | VersionRow], now: datetime | None) -> ColumnElement[bool]:
    return table.purge_time.is_not(None) if now is None else table.purge_time <= now


def _purge(
    session: Session, adapter: AdapterRow, now: datetime | None, limit: int, purged: pb.PurgeDeletedResponse
) -> None:
    """Removes what is due of a locked adapter, and tells `purged` of it."""
    ids = {"tenant": adapter.tenant, "adapter": adapter.adapter_id}
    is_whole = adapter.purge_time is not None and (now is None or adapter.purge_time <= now)
    query = select(VersionRow).where(*within(VersionRow, adapter)).order_by(VersionRow.number).limit(limit)
    rows = session.scalars(query if is_whole else query.where(_is_due(VersionRow, now))).all()
    _remove_versions(session, adapter, rows)
    purged.versions.extend(VERSION.format(**ids, version=str(row.number)) for row in rows)
    if is_whole and session.scalar(select(VersionRow.number).where(*within(VersionRow, adapter)).limit(1)) is None:
        session.execute(delete(AliasMoveRow).where(*within(AliasMoveRow, adapter)))
        session.delete(adapter)
        purged.adapters.append(ADAPTER.format(**ids))
    else:
        _renew_latest(session, adapter)


def _remove_versions(session: Session, adapter: AdapterRow, rows: Sequence[VersionRow]) -> None:
    numbers = [row.number for row in rows]
    session.execute(delete(AliasRow).where(*within(AliasRow, adapter), AliasRow.number.in_(numbers)))
    quota.lock(session, adapter.tenant)
    # All contents in order, before any is counted: those of one version after another would not be in order.
    files = select(FileRow.sha256).where(*within(FileRow, adapter), FileRow.number.in_(numbers))
    blobs = select(BlobRow.sha256).where(BlobRow.sha256.in_(files)).order_by(BlobRow.sha256)
    session.scalars(blobs.with_for_update()).all()
    for row in rows:
        contents.detach(session, row)
        session.delete(row)
    session.flush()


def _renew_latest(session: Session, adapter: AdapterRow) -> None:
    """Finds the newest version that is not deleted."""
    query = select(func.max(VersionRow.number)).where(*within(VersionRow, adapter), VersionRow.delete_time.is_(None))
    number = session.scalar(query) or 0
    if number != adapter.latest_number:
        adapter.latest_number, adapter.etag = number, new_etag()


def _mark_deleted(row: AdapterRow | VersionRow, grace: timedelta) -> None:
    """Says that it is deleted, from now."""
    row.delete_time = utc_now()
    row.purge_time = row.delete_time + grace


def _refuse_aliased(session: Session, row: VersionRow) -> None:
    query = select(AliasRow.alias_id).where(*within(AliasRow, row), AliasRow.number == row.number)
    ids = {"tenant": row.tenant, "adapter": row.adapter_id}
    names = [ALIAS.format(**ids, alias=alias) for alias in session.scalars(query.order_by(AliasRow.alias_id).limit(5))]
    if names:
        name = VERSION.format(**ids, version=str(row.number))
        raise FailedPreconditionError(
            f"{name} is what {', '.join(names)} points at; move or delete the alias first",
            reason="VERSION_ALIASED",
            metadata={"version": name, "aliases": ",".join(names)},
        )


def _not_deleted(kind: str, name: str) -> AlreadyExistsError:
    return AlreadyExistsError(
        f"{name} is not deleted; there is nothing to undo", reason=f"{kind.upper()}_NOT_DELETED", metadata={kind: name}
    )
