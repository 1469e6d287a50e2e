"""Aliases: movable names for versions, and what a reference means.

Moving an alias is a compare-and-swap when the caller sends an etag.
"""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.orm import Session

from atelier.errors import AbortedError, InvalidArgumentError, NotFoundError
from atelier.pb.registry.v1 import registry_pb2 as pb
from atelier.rpc.names import ADAPTER, ALIAS, VERSION, check_id, check_text
from atelier.rpc.pages import parse_page
from atelier.storage.database import to_timestamp, utc_now
from services.registry import adapters, versions
from services.registry.tables import AliasRow, new_etag

LATEST = "latest"


def update(session: Session, request: pb.UpdateAliasRequest) -> pb.Alias:
    """Points an alias at a version. Pointing it where it points already changes nothing."""
    ids = ALIAS.parse(request.alias.name, "alias.name")
    if check_id(ids["alias"], "alias.name") == LATEST:
        raise InvalidArgumentError(
            "alias.name", "is `latest`, which always means the newest version; choose another", reason="ALIAS_RESERVED"
        )
    number = _wanted_version(session, request.alias.version, ids["adapter"])
    row = session.get(AliasRow, tuple(ids.values()), with_for_update=True)
    if row is None and not request.allow_missing:
        raise _missing(**ids)
    if request.alias.etag and request.alias.etag != (row.etag if row else None):
        raise AbortedError(
            f"alias.etag: {request.alias.name} has moved since; read it again",
            reason="ETAG_MISMATCH",
            metadata={"alias": ALIAS.format(**ids)},
        )
    if row is None:
        row = AliasRow(tenant=ids["tenant"], adapter_id=ids["adapter"], alias_id=ids["alias"])
        session.add(row)
    if row.number != number:
        row.number, row.etag, row.update_time = number, new_etag(), utc_now()
    return to_message(row)


def get(session: Session, request: pb.GetAliasRequest) -> pb.Alias:
    """One alias."""
    return to_message(find(session, **ALIAS.parse(request.name, "name")))


def list_page(session: Session, request: pb.ListAliasesRequest) -> pb.ListAliasesResponse:
    """A page of an adapter's aliases, by name."""
    ids = ADAPTER.parse(request.parent, "parent")
    page = parse_page(request.page_size, request.page_token, "aliases", *ids.values())
    adapter = adapters.find(session, **ids)
    query = select(AliasRow).where(
        AliasRow.tenant == adapter.tenant,
        AliasRow.adapter_id == adapter.adapter_id,
        AliasRow.alias_id > page.after,
    )
    rows = session.scalars(query.order_by(AliasRow.alias_id).limit(page.size + 1)).all()
    rows, token = page.cut(rows, key=lambda row: row.alias_id)
    return pb.ListAliasesResponse(aliases=map(to_message, rows), next_page_token=token)


def resolve(session: Session, request: pb.ResolveVersionRequest) -> pb.Version:
    """The version that a reference means now."""
    ids = ADAPTER.parse(request.adapter, "adapter")
    adapter = adapters.find(session, **ids)
    reference = check_text(request.reference, "reference", max_characters=63)
    if reference in ("", LATEST):
        return versions.to_message(versions.newest(session, adapter))
    if not reference.isdecimal():
        reference = str(find(session, **ids, alias=check_id(reference, "reference")).number)
    return versions.to_message(versions.find(session, **ids, version=reference))


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


def _wanted_version(session: Session, name: str, adapter: str) -> int:
    ids = VERSION.parse(name, "alias.version")
    if ids["adapter"] != adapter:
        raise InvalidArgumentError("alias.version", f"belongs to the adapter {ids['adapter']}, not to {adapter}")
    return versions.find(session, **ids).number


def _missing(tenant: str, adapter: str, alias: str) -> NotFoundError:
    name = ALIAS.format(tenant=tenant, adapter=adapter, alias=alias)
    return NotFoundError(f"there is no {name}", reason="ALIAS_NOT_FOUND", metadata={"alias": name})
