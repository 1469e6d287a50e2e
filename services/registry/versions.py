"""Versions that were published: one, a page of them, the newest, a file of one."""

from __future__ import annotations

import re

from sqlalchemy import ColumnElement, and_, select
from sqlalchemy.orm import Session

from atelier.errors import FailedPreconditionError, NotFoundError
from atelier.pb.common.v1.common_pb2 import BaseModel, File
from atelier.pb.registry.v1 import registry_pb2 as pb
from atelier.rpc.names import ADAPTER, VERSION, shown
from atelier.rpc.pages import MAX_NUMBER, parse_page
from atelier.storage.database import to_timestamp
from services.registry import adapters
from services.registry.tables import AdapterRow, FileRow, VersionRow

_NUMBER = re.compile(r"[1-9][0-9]{0,8}")


def get(session: Session, request: pb.GetVersionRequest) -> pb.Version:
    """One version."""
    return to_message(find(session, **VERSION.parse(request.name, "name")))


def list_page(session: Session, request: pb.ListVersionsRequest) -> pb.ListVersionsResponse:
    """A page of an adapter's versions, newest first."""
    ids = ADAPTER.parse(request.parent, "parent")
    page = parse_page(request.page_size, request.page_token, "versions", *ids.values(), first=MAX_NUMBER)
    adapter = adapters.find(session, **ids)
    query = select(VersionRow).where(_belongs_to(adapter), VersionRow.number < page.after)
    rows = session.scalars(query.order_by(VersionRow.number.desc()).limit(page.size + 1)).all()
    rows, token = page.cut(rows, key=lambda row: row.number)
    return pb.ListVersionsResponse(versions=map(to_message, rows), next_page_token=token)


def find_file(session: Session, request: pb.DownloadFileRequest) -> FileRow:
    """The file of a version that a download asks for."""
    version = find(session, **VERSION.parse(request.version, "version"))
    for file in version.files:
        if file.path == request.path:
            return file
    raise NotFoundError(
        f"path: {request.version} has no file {shown(request.path)}",
        reason="FILE_NOT_FOUND",
        metadata={"version": request.version, "path": request.path[:200]},
    )


def find(session: Session, tenant: str, adapter: str, version: str) -> VersionRow:
    """The version's row; `version` is its number in decimal digits, as names have it."""
    adapters.find(session, tenant, adapter)
    row = session.get(VersionRow, (tenant, adapter, int(version))) if _NUMBER.fullmatch(version) else None
    if row is None:
        name = VERSION.format(tenant=tenant, adapter=adapter, version=version)
        raise NotFoundError(f"there is no {shown(name, 200)}", reason="VERSION_NOT_FOUND", metadata={"version": name})
    return row


def newest(session: Session, adapter: AdapterRow) -> VersionRow:
    """The adapter's newest version. FailedPreconditionError while it has none."""
    row = session.get(VersionRow, (adapter.tenant, adapter.adapter_id, adapter.latest_number))
    if row is None:
        name = ADAPTER.format(tenant=adapter.tenant, adapter=adapter.adapter_id)
        raise FailedPreconditionError(
            f"{name} has no version yet; publish one first",
            reason="ADAPTER_HAS_NO_VERSION",
            metadata={"adapter": name},
        )
    return row


def to_message(row: VersionRow) -> pb.Version:
    """The version as the API tells it."""
    return pb.Version(
        name=VERSION.format(tenant=row.tenant, adapter=row.adapter_id, version=str(row.number)),
        digest=row.digest,
        base_model=BaseModel(model=row.base_model, digest=row.base_model_digest),
        method=row.method,
        instance_prompt=row.instance_prompt,
        files=[File(path=file.path, size_bytes=file.size_bytes, sha256=file.sha256) for file in row.files],
        metrics=row.metrics,
        source_job=row.source_job,
        create_time=to_timestamp(row.create_time),
    )


def _belongs_to(adapter: AdapterRow) -> ColumnElement[bool]:
    return and_(VersionRow.tenant == adapter.tenant, VersionRow.adapter_id == adapter.adapter_id)
