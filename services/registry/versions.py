"""Versions that were published: one, the newest, a file of one.

A deleted version, or one of a deleted adapter, is still answered by GetVersion, until it is purged. To everything else
it is a FailedPreconditionError that says how to bring it back.
"""

from __future__ import annotations

import base64
import re

from google.protobuf.json_format import ParseDict
from sqlalchemy.orm import Session

from atelier.errors import FailedPreconditionError, NotFoundError
from atelier.pb.common.v1.common_pb2 import BaseModel, File
from atelier.pb.registry.v1 import registry_pb2 as pb
from atelier.rpc.names import ADAPTER, VERSION, shown
from atelier.storage.database import to_timestamp
from services.registry import adapters
from services.registry.tables import AdapterRow, FileRow, VersionRow

_NUMBER = re.compile(r"[1-9][0-9]{0,8}")


def get(session: Session, request: pb.GetVersionRequest) -> pb.Version:
    """One version; a deleted one too."""
    return to_message(find(session, *VERSION.parse(request.name, "name").values(), deleted=True))


def find_file(session: Session, request: pb.DownloadFileRequest | pb.SignDownloadRequest) -> FileRow:
    """The file of a version that a download asks for."""
    version = find(session, *VERSION.parse(request.version, "version").values())
    for file in version.files:
        if file.path == request.path:
            return file
    raise NotFoundError(
        f"path: {request.version} has no file {shown(request.path)}",
        reason="FILE_NOT_FOUND",
        metadata={"version": request.version, "path": request.path[:200]},
    )


def find(session: Session, tenant: str, adapter: str, version: str, *, deleted: bool = False) -> VersionRow:
    """The version's row; `version` is its number in decimal digits, as names have it.

    One that is deleted, or whose adapter is, only when `deleted` ones will do.
    """
    adapters.find(session, tenant, adapter, deleted=deleted)
    row = session.get(VersionRow, (tenant, adapter, int(version))) if _NUMBER.fullmatch(version) else None
    name = VERSION.format(tenant=tenant, adapter=adapter, version=version)
    if row is None:
        raise NotFoundError(f"there is no {shown(name, 200)}", reason="VERSION_NOT_FOUND", metadata={"version": name})
    if row.delete_time is not None and not deleted:
        raise FailedPreconditionError(
            f"{name} is deleted; undelete it first", reason="VERSION_DELETED", metadata={"version": name}
        )
    return row


def newest(session: Session, adapter: AdapterRow) -> VersionRow:
    """The adapter's newest version that is not deleted. FailedPreconditionError while it has none."""
    row = session.get(VersionRow, (adapter.tenant, adapter.adapter_id, adapter.latest_number))
    if row is None:
        name = ADAPTER.format(tenant=adapter.tenant, adapter=adapter.adapter_id)
        raise FailedPreconditionError(
            f"{name} has no version; publish one first",
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
        # Sorted here as the manifest is, since databases sort text each in their own way.
        files=[
            File(path=file.path, size_bytes=file.size_bytes, sha256=file.sha256)
            for file in sorted(row.files, key=lambda file: file.path)
        ],
        metrics={metric.name: metric.value for metric in sorted(row.metrics, key=lambda metric: metric.name)},
        source_job=row.source_job,
        create_time=to_timestamp(row.create_time),
        trigger_words=sorted(word.word for word in row.words),
        family=row.family,
        weights=[ParseDict(summary, pb.WeightsSummary()) for summary in row.weights],
        signatures=[
            pb.Signature(key_id=signature["key_id"], signature=base64.b64decode(signature["signature"]))
            for signature in row.signatures
        ],
        delete_time=to_timestamp(row.delete_time),
        purge_time=to_timestamp(row.purge_time),
    )
