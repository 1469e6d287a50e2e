"""Scrubbing: reading stored contents again, because stores lose bytes and change them.

Those come first that were not read for longest, so that scrubs with a limit get round to everything. Only what is found
sound counts as read. What is not is remembered, and healed by whoever publishes the same bytes again (`contents`).
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from datetime import datetime

from sqlalchemy import and_, or_, select
from sqlalchemy.orm import Session

from atelier.errors import InvalidArgumentError, NotFoundError
from atelier.pb.registry.v1 import maintenance_pb2 as pb
from atelier.rpc.names import VERSION
from atelier.storage.blobs import BlobStore
from atelier.storage.database import Database, utc_now
from services.registry import metrics
from services.registry.content_tables import BlobRow
from services.registry.tables import FileRow

PROGRESS_EVERY = 10
"""Contents between two reports of progress."""
MAX_NAMED_VERSIONS = 100


class Scrubber:
    """Reads contents again."""

    def __init__(self, database: Database, blobs: BlobStore) -> None:
        self._database = database
        self._blobs = blobs

    async def scrub(self, request: pb.ScrubRequest) -> AsyncIterator[pb.ScrubResponse]:
        """Serves one Scrub call. Contents that are larger than what is left of the limit are passed over."""
        if request.limit_bytes < 0:
            raise InvalidArgumentError("limit_bytes", f"is {request.limit_bytes}; 0 (no limit) or more are allowed")
        began = utc_now()
        progress = pb.ScrubProgress()
        blob: BlobRow | None = None
        while blob := await asyncio.to_thread(self._next, began, blob, request.limit_bytes, progress.blob_bytes):
            rot = await asyncio.to_thread(self._examine, blob)
            progress.blob_count += 1
            progress.blob_bytes += blob.size_bytes
            if rot is not None:
                progress.rot_count += 1
                yield pb.ScrubResponse(rot=rot)
            if progress.blob_count % PROGRESS_EVERY == 0:
                yield pb.ScrubResponse(progress=progress)
        yield pb.ScrubResponse(progress=progress)

    def _next(self, began: datetime, last: BlobRow | None, limit_bytes: int, read_bytes: int) -> BlobRow | None:
        """The content that was not read for longest, of those that this scrub has not come to."""
        query = select(BlobRow).where(BlobRow.scrub_time < began)
        if last is not None:
            is_same_time = and_(BlobRow.scrub_time == last.scrub_time, BlobRow.sha256 > last.sha256)
            query = query.where(or_(BlobRow.scrub_time > last.scrub_time, is_same_time))
        if limit_bytes:
            query = query.where(BlobRow.size_bytes <= limit_bytes - read_bytes)
        with self._database.transaction(read_only=True) as session:
            return session.scalar(query.order_by(BlobRow.scrub_time, BlobRow.sha256).limit(1))

    def _examine(self, blob: BlobRow) -> pb.Rot | None:
        """What is wrong with a content; None when nothing is, or when it was collected meanwhile."""
        kind = self._compare(blob)
        with self._database.transaction() as session:
            query = select(BlobRow).where(BlobRow.sha256 == blob.sha256, BlobRow.object_key == blob.object_key)
            row = session.scalar(query.with_for_update())
            if row is None:
                return None
            if kind == pb.Rot.KIND_UNSPECIFIED:
                row.scrub_time, row.rot_time = utc_now(), None
                return None
            row.rot_time = row.rot_time or utc_now()
            metrics.ROTTEN.labels(pb.Rot.Kind.Name(kind).removeprefix("KIND_").lower()).inc()
            return pb.Rot(sha256=blob.sha256, kind=kind, versions=_versions_with(session, blob.sha256))

    def _compare(self, blob: BlobRow) -> pb.Rot.Kind:
        """How the stored bytes differ; KIND_UNSPECIFIED when they do not."""
        digest = hashlib.sha256()
        try:
            for piece in self._blobs.stream(blob.object_key):
                digest.update(piece)
                metrics.SCRUBBED_BYTES.inc(len(piece))
        except NotFoundError:
            return pb.Rot.KIND_MISSING
        return pb.Rot.KIND_UNSPECIFIED if digest.hexdigest() == blob.sha256 else pb.Rot.KIND_CHANGED


def _versions_with(session: Session, sha256: str) -> list[str]:
    columns = (FileRow.tenant, FileRow.adapter_id, FileRow.number)
    query = select(*columns).where(FileRow.sha256 == sha256).distinct().order_by(*columns).limit(MAX_NAMED_VERSIONS)
    return [
        VERSION.format(tenant=tenant, adapter=adapter_id, version=str(number))
        for tenant, adapter_id, number in session.execute(query)
    ]
