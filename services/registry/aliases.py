"""Aliases: movable names for versions, what a reference means, and where aliases have pointed.

Moving or deleting an alias is a compare-and-swap when the caller sends an etag. An alias never points at a version that
is deleted: whoever moves an alias or deletes a version holds the adapter's lock. Nothing is cached: a reference is
resolved at every request.
"""

from __future__ import annotations

from google.protobuf.empty_pb2 import Empty
from sqlalchemy import select
from sqlalchemy.orm import Session

from atelier.errors import AbortedError, InvalidArgumentError, NotFoundError
from atelier.pb.registry.v1 import registry_pb2 as pb
from atelier.rpc.call import current_call
from atelier.rpc.names import ADAPTER, ALIAS, VERSION, check_id, check_text
from atelier.rpc.pages import parse_page
from atelier.storage.database import to_timestamp, utc_now
from services.registry import adapters, versions
from services.registry.tables import AliasMoveRow, AliasRow, new_etag

LATEST = "latest"


def update(session: Session, request: pb.UpdateAliasRequest) -> pb.Alias:
    """Points an alias at a version. Pointing it where it points already changes nothing."""
    ids = ALIAS.parse(request.alias.name, "alias.name")
    if check_id(ids["alias"], "alias.name") == LATEST:
        raise InvalidArgumentError(
            "alias.name", "is `latest`, which always means the newest version; choose another", reason="ALIAS_RESERVED"
        )
    wanted = _wanted_version(request.alias.version, ids["adapter"])
    adapters.lock(session, ids["tenant"], ids["adapter"])
    number = versions.find(session, *wanted.values()).number
    row = session.get(AliasRow, tuple(ids.values()))
    if row is None and not request.allow_missing:
        raise _missing(**ids)
    _check_etag(ids, request.alias.etag, row, "alias.etag")
    if row is None:
        row = AliasRow(tenant=ids["tenant"], adapter_id=ids["adapter"], alias_id=ids["alias"])
        session.add(row)
    if row.number != number:
        _record_move(session, row, number)
        row.number, row.etag, row.update_time = number, new_etag(), utc_now()
    return to_message(row)


def delete(session: Session, request: pb.DeleteAliasRequest) -> Empty:
    """Deletes an alias; where it has pointed is kept."""
    ids = ALIAS.parse(request.name, "name")
    adapters.lock(session, ids["tenant"], ids["adapter"])
    row = find(session, **ids)
    _check_etag(ids, request.etag, row, "etag")
    _record_move(session, row, None)
    session.delete(row)
    return Empty()


def get(session: Session, request: pb.GetAliasRequest) -> pb.Alias:
    """One alias."""
    return to_message(find(session, *ALIAS.parse(request.name, "name").values()))


def list_page(session: Session, request: pb.ListAliasesRequest) -> pb.ListAliasesResponse:
    """A page of an adapter's aliases, by name."""
    ids = ADAPTER.parse(request.parent, "parent")
    page = parse_page(request.page_size, request.page_token, "aliases", *ids.values())
    adapter = adapters.find(session, *ids.values())
    query = select(AliasRow).where(
        AliasRow.tenant == adapter.tenant,
        AliasRow.adapter_id == adapter.adapter_id,
        AliasRow.alias_id > page.after,
    )
    rows = session.scalars(query.order_by(AliasRow.alias_id).limit(page.size + 1)).all()
    rows, token = page.cut(rows, key=lambda row: row.alias_id)
    return pb.ListAliasesResponse(aliases=map(to_message, rows), next_page_token=token)


def resolve(session: Session, request: pb.ResolveVersionRequest) -> pb.Version:
    """The version that a reference means now; never a deleted one."""
    ids = ADAPTER.parse(request.adapter, "adapter")
    adapter = adapters.find(session, *ids.values())
    reference = check_text(request.reference, "reference", max_characters=63)
    if reference in ("", LATEST):
        return versions.to_message(versions.newest(session, adapter))
    if not reference.isdecimal():
        reference = str(find(session, **ids, alias=check_id(reference, "reference")).number)
    return versions.to_message(versions.find(session, ids["tenant"], ids["adapter"], reference))


def find(session: Session, tenant: str, adapter: str, alias: str) -> AliasRow:
    """The alias's row."""
    adapters.find(session, tenant, adapter)
    row = session.get(AliasRow, (tenant, adapter, alias))
    if row is None:
        raise _missing(tenant, adapter, alias)
    return row


def to_message(row: AliasRow) -> pb.Alias:
    """The alias as the API tells it."""
    ids = {"tenant": row.tenant, "adapter": row.adapter_id}
    return pb.Alias(
        name=ALIAS.format(**ids, alias=row.alias_id),
        version=VERSION.format(**ids, version=str(row.number)),
        etag=row.etag,
        update_time=to_timestamp(row.update_time),
    )


def _wanted_version(name: str, adapter: str) -> dict[str, str]:
    ids = VERSION.parse(name, "alias.version")
    if ids["adapter"] != adapter:
        raise InvalidArgumentError("alias.version", f"belongs to the adapter {ids['adapter']}, not to {adapter}")
    return ids


def _check_etag(ids: dict[str, str], etag: str, row: AliasRow | None, field: str) -> None:
    if etag and etag != (row.etag if row else None):
        name = ALIAS.format(**ids)
        raise AbortedError(
            f"{field}: {name} has moved since; read it again", reason="ETAG_MISMATCH", metadata={"alias": name}
        )


def _record_move(session: Session, row: AliasRow, number: int | None) -> None:
    session.add(
        AliasMoveRow(
            tenant=row.tenant,
            adapter_id=row.adapter_id,
            alias_id=row.alias_id,
            old_number=row.number,
            new_number=number,
            subject=current_call().subject,
            move_time=utc_now(),
        )
    )


def _missing(tenant: str, adapter: str, alias: str) -> NotFoundError:
    name = ALIAS.format(tenant=tenant, adapter=adapter, alias=alias)
    return NotFoundError(f"there is no {name}", reason="ALIAS_NOT_FOUND", metadata={"alias": name})
