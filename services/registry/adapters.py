"""Adapters: what people write about them, inside one transaction each.

A deleted adapter is still answered by GetAdapter, until it is purged. Everything else about it is a
FailedPreconditionError that says how to bring it back. `deletion` deletes, `retention` says which versions are kept.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import ColumnElement, select
from sqlalchemy.orm import Session

from atelier.errors import (
    AbortedError,
    AlreadyExistsError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
)
from atelier.pb.registry.v1 import registry_pb2 as pb
from atelier.rpc.names import ADAPTER, TENANT, VERSION, check_id, check_text, shown
from atelier.storage.database import to_timestamp, utc_now
from services.registry import policies
from services.registry.tables import AdapterRow, AliasMoveRow, AliasRow, FileRow, TagRow, VersionRow, new_etag

ALL = "-"
"""In place of an adapter's id, where a call is for all of the tenant's (AIP-159)."""
MAX_DESCRIPTION_CHARACTERS = 1000
MAX_TAGS = 64
_UPDATABLE = ("description", "tags", "retention")


def create(session: Session, request: pb.CreateAdapterRequest) -> pb.Adapter:
    """Creates an adapter."""
    tenant = TENANT.parse(request.parent, "parent")["tenant"]
    adapter_id = check_id(request.adapter_id, "adapter_id")
    row = AdapterRow(
        tenant=tenant, adapter_id=adapter_id, last_number=0, latest_number=0, etag=new_etag(), create_time=utc_now()
    )
    _write(row, request.adapter, _UPDATABLE)
    taken = session.get(AdapterRow, (tenant, adapter_id))
    if taken is not None:
        raise _taken(taken)
    session.add(row)
    return to_message(row)


def get(session: Session, request: pb.GetAdapterRequest) -> pb.Adapter:
    """One adapter; a deleted one too."""
    return to_message(find(session, *ADAPTER.parse(request.name, "name").values(), deleted=True))


def update(session: Session, request: pb.UpdateAdapterRequest) -> pb.Adapter:
    """Changes what the mask names. Writing what is there already changes nothing."""
    row = lock(session, *ADAPTER.parse(request.adapter.name, "adapter.name").values())
    check_etag(row, request.adapter.etag, "adapter.etag")
    _write(row, request.adapter, _masked(request.update_mask.paths))
    if session.is_modified(row):
        row.etag = new_etag()
    return to_message(row)


def find(session: Session, tenant: str, adapter: str, *, deleted: bool = False) -> AdapterRow:
    """The adapter's row. One that is deleted only when `deleted` ones will do."""
    return _checked(session.get(AdapterRow, (tenant, adapter)), tenant, adapter, deleted)


def lock(session: Session, tenant: str, adapter: str, *, deleted: bool = False) -> AdapterRow:
    """The same, locked and as it is now: nobody else changes the adapter, its versions or aliases until the end."""
    own = (AdapterRow.tenant == tenant, AdapterRow.adapter_id == adapter)
    query = select(AdapterRow).where(*own).with_for_update().execution_options(populate_existing=True)
    return _checked(session.scalar(query), tenant, adapter, deleted)


def within(
    table: type[VersionRow | FileRow | AliasRow | AliasMoveRow], adapter: AdapterRow | VersionRow
) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    """The conditions under which rows belong to an adapter, or to that of a version."""
    return table.tenant == adapter.tenant, table.adapter_id == adapter.adapter_id


def check_etag(row: AdapterRow, etag: str, field: str) -> None:
    """AbortedError unless the etag is the current one, or empty."""
    if etag and etag != row.etag:
        name = ADAPTER.format(tenant=row.tenant, adapter=row.adapter_id)
        raise AbortedError(
            f"{field}: {name} has changed since; read it again", reason="ETAG_MISMATCH", metadata={"adapter": name}
        )


def to_message(row: AdapterRow) -> pb.Adapter:
    """The adapter as the API tells it."""
    ids = {"tenant": row.tenant, "adapter": row.adapter_id}
    return pb.Adapter(
        name=ADAPTER.format(**ids),
        description=row.description,
        create_time=to_timestamp(row.create_time),
        latest_version=VERSION.format(**ids, version=str(row.latest_number)) if row.latest_number else "",
        etag=row.etag,
        tags=sorted(tag.tag for tag in row.tags),
        retention=policies.to_message(row),
        delete_time=to_timestamp(row.delete_time),
        purge_time=to_timestamp(row.purge_time),
    )


def _checked(row: AdapterRow | None, tenant: str, adapter: str, deleted: bool) -> AdapterRow:
    name = ADAPTER.format(tenant=tenant, adapter=adapter)
    if row is None:
        raise NotFoundError(f"there is no {name}", reason="ADAPTER_NOT_FOUND", metadata={"adapter": name})
    if row.delete_time is not None and not deleted:
        raise FailedPreconditionError(
            f"{name} is deleted; undelete it first", reason="ADAPTER_DELETED", metadata={"adapter": name}
        )
    return row


def _masked(paths: Sequence[str]) -> Sequence[str]:
    if list(paths) in ([], ["*"]):
        return _UPDATABLE
    for path in paths:
        if path not in _UPDATABLE:
            raise InvalidArgumentError(
                "update_mask", f"names {shown(path)}; allowed are {', '.join(_UPDATABLE)}, or * alone for all"
            )
    return paths


def _write(row: AdapterRow, adapter: pb.Adapter, fields: Sequence[str]) -> None:
    if "tags" in fields:  # first: loading them flushes changes, which `is_modified` would not see any more
        present = {tag.tag: tag for tag in row.tags}
        row.tags = [present.get(tag) or TagRow(tag=tag) for tag in _checked_tags(adapter.tags)]
    if "description" in fields:
        row.description = check_text(
            adapter.description, "adapter.description", max_characters=MAX_DESCRIPTION_CHARACTERS
        )
    if "retention" in fields:
        policies.write(row, policies.parse(adapter.retention, "adapter.retention"))


def _checked_tags(tags: Sequence[str]) -> list[str]:
    if len(tags) > MAX_TAGS:
        raise InvalidArgumentError("adapter.tags", f"holds {len(tags)} tags; at most {MAX_TAGS} are allowed")
    for index, tag in enumerate(tags):
        check_id(tag, f"adapter.tags[{index}]")
        if tag in tags[:index]:
            raise InvalidArgumentError(f"adapter.tags[{index}]", f"is {tag} once more; each is allowed once")
    return sorted(tags)


def _taken(row: AdapterRow) -> AlreadyExistsError:
    name = ADAPTER.format(tenant=row.tenant, adapter=row.adapter_id)
    way_out = "undelete or purge it" if row.delete_time else "choose another id, or publish a version of it"
    return AlreadyExistsError(
        f"adapter_id: {name} is there already{', deleted' if row.delete_time else ''}; {way_out}",
        reason="ADAPTER_EXISTS",
        metadata={"adapter": name},
    )
