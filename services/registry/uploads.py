"""Uploads that may be interrupted: begun, looked at and given up here, written in `upload_writer`, or by signed PUT
straight to the object store, and published in `upload_completion`.

What an upload has is in SQL and S3, so every replica can go on with it. Nothing of it is visible until it is completed;
it goes when it is completed, deleted or expired. An upload is begun only while the bytes that all open ones declare fit
into the tenant's quota beside what is stored: they do not count for other ways to publish.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass

from google.protobuf.empty_pb2 import Empty
from sqlalchemy.orm import Session

from atelier.pb.registry.v1 import registry_pb2 as pb
from atelier.rpc.names import ADAPTER
from atelier.storage.blobs import BlobStore
from atelier.storage.database import Database
from atelier.storage.presigning import MAX_PUT_BYTES, Presigner
from atelier.storage.requests import perform
from services.registry import adapters, base_models, quota, upload_rows
from services.registry.downloads import signed_message
from services.registry.quota import Quotas
from services.registry.spec import check_version
from services.registry.storing import IDLE_SECONDS
from services.registry.tables import Request
from services.registry.upload_completion import Completer, delete_objects
from services.registry.upload_writer import Writer

LIFETIME_SECONDS = 24 * 3600.0


@dataclass(frozen=True, kw_only=True, slots=True)
class UploadConfig:
    """Limits of an upload."""

    max_version_bytes: int
    lifetime_seconds: float = LIFETIME_SECONDS
    """Until an upload that was not completed expires."""
    idle_seconds: float = IDLE_SECONDS
    """How long a client may take for its next bytes."""

    def __post_init__(self) -> None:
        for name in ("max_version_bytes", "lifetime_seconds", "idle_seconds"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}: is {getattr(self, name)}; it must be positive")


class Uploader:
    """Receives versions in several calls."""

    def __init__(
        self,
        config: UploadConfig,
        database: Database,
        blobs: BlobStore,
        quotas: Quotas,
        presigner: Presigner,
        completer: Completer,
    ) -> None:
        self._config = config
        self._database = database
        self._blobs = blobs
        self._quotas = quotas
        self._presigner = presigner
        self._completer = completer
        self._writer = Writer(database, blobs, idle_seconds=config.idle_seconds)

    def create(self, request: pb.CreateUploadRequest) -> pb.Upload:
        """Serves one CreateUpload call. A repeat of it gets fresh URLs: they are not kept."""
        ids = ADAPTER.parse(request.parent, "parent")
        version = check_version(request.version, "version", max_version_bytes=self._config.max_version_bytes)
        kept = pb.CreateUploadRequest(
            parent=request.parent, version=version, sign_put_requests=request.sign_put_requests
        )

        def begin(session: Session) -> pb.Upload:
            adapters.find(session, ids["tenant"], ids["adapter"])
            base_models.find(session, version.base_model.digest, "version.base_model.digest")
            quota.lock(session, ids["tenant"])
            pending_bytes = upload_rows.open_bytes(session, ids["tenant"])
            self._quotas.check(session, ids["tenant"], version.files, pending_bytes=pending_bytes)
            row = upload_rows.create(session, ids["tenant"], kept, self._config.lifetime_seconds)
            return upload_rows.to_message(session, row)

        upload = perform(self._database, Request, request, pb.Upload, begin)
        if request.sign_put_requests and not request.validate_only:
            self._blobs.create_bucket()
            self._sign(upload)
        return upload

    async def write(self, messages: AsyncIterator[pb.WriteUploadRequest]) -> pb.Upload:
        """Serves one WriteUpload call."""
        return await self._writer.write(messages)

    def get(self, request: pb.GetUploadRequest) -> pb.Upload:
        """Serves one GetUpload call."""
        with self._database.transaction(read_only=True) as session:
            row = upload_rows.find(session, request.name, "name")
            upload = upload_rows.to_message(session, row)
        if upload_rows.begun_by(row).sign_put_requests:
            self._sign(upload)
        return upload

    async def complete(self, request: pb.CompleteUploadRequest) -> pb.Version:
        """Serves one CompleteUpload call."""
        return await self._completer.complete(request)

    def delete(self, request: pb.DeleteUploadRequest) -> Empty:
        """Serves one DeleteUpload call."""

        def give_up(session: Session) -> Empty:
            session.delete(upload_rows.find(session, request.name, "name", lock=True))
            return Empty()

        answer = perform(self._database, Request, request, Empty, give_up)
        if not request.validate_only:
            delete_objects(self._blobs, request.name)
        return answer

    def _sign(self, upload: pb.Upload) -> None:
        """Adds the URLs at which the object store takes the files, except for those that no single PUT can carry."""
        for index, each in enumerate(upload.files):
            if each.file.size_bytes <= MAX_PUT_BYTES:
                key = upload_rows.put_key(upload.name, index)
                signed = self._presigner.put(key, size_bytes=each.file.size_bytes, sha256=each.file.sha256)
                each.put.CopyFrom(signed_message(signed))
