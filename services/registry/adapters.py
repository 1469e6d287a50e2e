"""Tenants and adapters: what the requests mean, inside one transaction each."""

from __future__ import annotations

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from atelier.errors import AlreadyExistsError, NotFoundError
from atelier.pb.registry.v1 import registry_pb2 as pb
from atelier.rpc.names import ADAPTER, TENANT, VERSION, check_id, check_text
from atelier.rpc.pages import parse_page
from atelier.storage.database import to_timestamp, utc_now
from atelier.storage.requests import earlier_result, remember
from services.registry.tables import AdapterRow, FileRow, Request, new_etag

MAX_DESCRIPTION_CHARACTERS = 1000


def get_tenant(session: Session, request: pb.GetTenantRequest) -> pb.Tenant:
    """The caller's tenant."""
    tenant = TENANT.parse(request.name, "name")["tenant"]
    adapters = select(func.count()).select_from(AdapterRow).where(AdapterRow.tenant == tenant)
    contents = select(FileRow.sha256, FileRow.size_bytes).where(FileRow.tenant == tenant).distinct().subquery()
    stored_bytes = session.scalar(select(func.sum(contents.c.size_bytes)))
    return pb.Tenant(
        name=TENANT.format(), adapter_count=session.scalar(adapters) or 0, stored_bytes=int(stored_bytes or 0)
    )


def create(session: Session, request: pb.CreateAdapterRequest) -> pb.Adapter:
    """Creates an adapter."""
    tenant = TENANT.parse(request.parent, "parent")["tenant"]
    adapter_id = check_id(request.adapter_id, "adapter_id")
    description = check_text(
        request.adapter.description, "adapter.description", max_characters=MAX_DESCRIPTION_CHARACTERS
    )
    earlier = earlier_result(session, Request, tenant, request.request_id, request)
    if earlier is not None:
        return to_message(find(session, **ADAPTER.parse(earlier, "name")))
    name = ADAPTER.format(adapter=adapter_id)
    if session.get(AdapterRow, (tenant, adapter_id)) is not None:
        raise AlreadyExistsError(
            f"adapter_id: {name} is there already; choose another id, or publish a version of it",
            reason="ADAPTER_EXISTS",
            metadata={"adapter": name},
        )
    row = AdapterRow(
        tenant=tenant,
        adapter_id=adapter_id,
        description=description,
        latest_number=0,
        etag=new_etag(),
        create_time=utc_now(),
    )
    if not request.validate_only:
        session.add(row)
        remember(session, Request, tenant, request.request_id, request, name)
    return to_message(row)


def get(session: Session, request: pb.GetAdapterRequest) -> pb.Adapter:
    """One adapter."""
    return to_message(find(session, **ADAPTER.parse(request.name, "name")))


def list_page(session: Session, request: pb.ListAdaptersRequest) -> pb.ListAdaptersResponse:
    """A page of the tenant's adapters, by name."""
    tenant = TENANT.parse(request.parent, "parent")["tenant"]
    page = parse_page(request.page_size, request.page_token, "adapters", tenant)
    query = select(AdapterRow).where(AdapterRow.tenant == tenant, AdapterRow.adapter_id > page.after)
    rows = session.scalars(query.order_by(AdapterRow.adapter_id).limit(page.size + 1)).all()
    rows, token = page.cut(rows, key=lambda row: row.adapter_id)
    return pb.ListAdaptersResponse(adapters=map(to_message, rows), next_page_token=token)


def find(session: Session, tenant: str, adapter: str) -> AdapterRow:
    """The adapter's row."""
    row = session.get(AdapterRow, (tenant, adapter))
    if row is None:
        name = ADAPTER.format(tenant=tenant, adapter=adapter)
        raise NotFoundError(f"there is no {name}", reason="ADAPTER_NOT_FOUND", metadata={"adapter": name})
    return row


def to_message(row: AdapterRow) -> pb.Adapter:
    """The adapter as the API tells it."""
    ids = {"tenant": row.tenant, "adapter": row.adapter_id}
    return pb.Adapter(
        name=ADAPTER.format(**ids),
        description=row.description,
        create_time=to_timestamp(row.create_time),
        latest_version=VERSION.format(**ids, version=str(row.latest_number)) if row.latest_number else "",
        etag=row.etag,
    )
