"""Uploads that go on, in SQL: begun, looked up, grown by a part, given up. Each function is inside one transaction.

The parts of a file follow one another without a gap: a part is added under the lock of its upload's row, and only at
the offset that has been reached. Of two writers at one offset, the second is told so and adds nothing.
"""

from __future__ import annotations

import secrets
from datetime import timedelta

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from atelier.errors import AbortedError, NotFoundError, ResourceExhaustedError
from atelier.pb.common.v1.common_pb2 import File
from atelier.pb.registry.v1 import registry_pb2 as pb
from atelier.rpc.names import UPLOAD, shown
from atelier.storage.database import to_timestamp, utc_now
from services.registry.content_tables import UploadPartRow, UploadRow

FOLDER = "registry/uploads/"
"""What the keys of all uploads' objects begin with."""
MAX_OPEN_UPLOADS = 100
"""Of a tenant, at one time."""


def open_bytes(session: Session, tenant: str) -> int:
    """What a tenant's open uploads will have brought when they are whole. The tenant's row is locked.

    ResourceExhaustedError when there are as many as may be.
    """
    totals = select(func.count(), func.coalesce(func.sum(UploadRow.size_bytes), 0))
    query = totals.where(UploadRow.tenant == tenant, UploadRow.expire_time > utc_now())
    count, size_bytes = session.execute(query).one()
    if count >= MAX_OPEN_UPLOADS:
        raise ResourceExhaustedError(
            f"the tenant has {MAX_OPEN_UPLOADS} open uploads, and no more are allowed; complete or delete some",
            reason="TOO_MANY_UPLOADS",
        )
    return int(size_bytes)


def create(session: Session, tenant: str, request: pb.CreateUploadRequest, lifetime_seconds: float) -> UploadRow:
    """Begins an upload."""
    now = utc_now()
    row = UploadRow(
        tenant=tenant,
        upload_id=f"u-{secrets.token_hex(16)}",
        request=request.SerializeToString(),
        size_bytes=sum(file.size_bytes for file in request.version.files),
        create_time=now,
        expire_time=now + timedelta(seconds=lifetime_seconds),
    )
    session.add(row)
    return row


def find(session: Session, name: str, field: str, *, lock: bool = False) -> UploadRow:
    """The row of an upload that has not expired; with `lock`, nobody else changes the upload until the end."""
    ids = UPLOAD.parse(name, field)
    row = session.get(UploadRow, (ids["tenant"], ids["upload"]), with_for_update=lock)
    if row is None or row.expire_time <= utc_now():
        name = UPLOAD.format(**ids)
        raise NotFoundError(
            f"there is no {name}, or not any more; begin another", reason="UPLOAD_NOT_FOUND", metadata={"upload": name}
        )
    return row


def begun_by(row: UploadRow) -> pb.CreateUploadRequest:
    """The request that began an upload, as far as it matters later; its version is checked."""
    return pb.CreateUploadRequest.FromString(row.request)


def folder(name: str) -> str:
    """What the keys of an upload's objects begin with."""
    ids = UPLOAD.parse(name, "name")
    return f"{FOLDER}{ids['tenant']}/{ids['upload']}/"


def put_key(name: str, index: int) -> str:
    """Where a signed PUT leaves the upload's file with this index."""
    return f"{folder(name)}files/{index}"


def find_file(row: UploadRow, path: str) -> File:
    """One of the upload's files."""
    for file in begun_by(row).version.files:
        if file.path == path:
            return file
    name = UPLOAD.format(tenant=row.tenant, upload=row.upload_id)
    raise NotFoundError(
        f"spec.path: {name} has no file {shown(path)}",
        reason="FILE_NOT_FOUND",
        metadata={"upload": name, "path": path[:200]},
    )


def add_part(session: Session, name: str, path: str, offset_bytes: int, size_bytes: int, object_key: str) -> None:
    """Adds a file's next part. AbortedError when it is not the next one."""
    row = find(session, name, "spec.upload", lock=True)
    check_offset(session, row, path, offset_bytes)
    session.add(
        UploadPartRow(
            tenant=row.tenant,
            upload_id=row.upload_id,
            path=path,
            offset_bytes=offset_bytes,
            size_bytes=size_bytes,
            object_key=object_key,
        )
    )


def check_offset(session: Session, row: UploadRow, path: str, offset_bytes: int) -> None:
    """AbortedError unless exactly so many bytes of the file have arrived."""
    received = received_bytes(session, row).get(path, 0)
    if offset_bytes != received:
        raise AbortedError(
            f"spec.offset_bytes: is {offset_bytes}; {received} bytes of {shown(path)} have arrived, go on from there",
            reason="UPLOAD_OFFSET_MISMATCH",
            metadata={"received_bytes": str(received)},
        )


def received_bytes(session: Session, row: UploadRow) -> dict[str, int]:
    """How much has arrived of each file of which anything has."""
    query = select(UploadPartRow.path, func.sum(UploadPartRow.size_bytes)).where(*_of(row))
    return {path: int(total) for path, total in session.execute(query.group_by(UploadPartRow.path))}


def part_keys(session: Session, row: UploadRow, path: str) -> list[str]:
    """Where a file's parts lie, in order."""
    query = select(UploadPartRow.object_key).where(*_of(row), UploadPartRow.path == path)
    return list(session.scalars(query.order_by(UploadPartRow.offset_bytes)))


def drop_parts(session: Session, row: UploadRow, path: str) -> None:
    """Forgets what has arrived of a file."""
    session.execute(delete(UploadPartRow).where(*_of(row), UploadPartRow.path == path))


def to_message(session: Session, row: UploadRow) -> pb.Upload:
    """The upload as the API tells it, without signed requests."""
    received = received_bytes(session, row)
    return pb.Upload(
        name=UPLOAD.format(tenant=row.tenant, upload=row.upload_id),
        files=[
            pb.UploadFile(file=file, received_bytes=received.get(file.path, 0)) for file in begun_by(row).version.files
        ],
        create_time=to_timestamp(row.create_time),
        expire_time=to_timestamp(row.expire_time),
    )


def _of(row: UploadRow) -> tuple:
    return UploadPartRow.tenant == row.tenant, UploadPartRow.upload_id == row.upload_id
