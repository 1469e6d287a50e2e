"""Completing an upload: every file's bytes are read back from S3, hashed, checked and stored, then published as usual.

A file that turns out to be another than was declared is dropped, so that the right one can be sent; all else of the
upload stays as it was. Once the version is visible the upload is gone. Its objects are deleted then; those that cannot
be deleted are left to the garbage collection.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence

import structlog
from sqlalchemy.orm import Session

from atelier.errors import AtelierError, FailedPreconditionError, InvalidArgumentError, NotFoundError
from atelier.manifest import canonical_manifest
from atelier.pb.registry.v1 import registry_pb2 as pb
from atelier.rpc.names import ADAPTER, shown
from atelier.storage.blobs import BlobStore
from atelier.storage.database import Database
from atelier.storage.requests import earlier_answer
from services.registry import adapters, base_models, upload_rows
from services.registry.base_models import KnownBase
from services.registry.commit import Committer, VersionDraft
from services.registry.storing import StoredFile, Storer
from services.registry.tables import Request
from services.registry.weights import summarize

_log = structlog.get_logger("atelier.registry")


class Completer:
    """Publishes uploads."""

    def __init__(self, database: Database, blobs: BlobStore, storer: Storer, committer: Committer) -> None:
        self._database = database
        self._blobs = blobs
        self._storer = storer
        self._committer = committer

    async def complete(self, request: pb.CompleteUploadRequest) -> pb.Version:
        """Serves one CompleteUpload call."""
        return await asyncio.to_thread(self._complete, request)

    def _complete(self, request: pb.CompleteUploadRequest) -> pb.Version:
        with self._database.transaction(read_only=True) as session:
            earlier = earlier_answer(session, Request, request, pb.Version)
            if earlier is not None:
                return earlier
            row = upload_rows.find(session, request.name, "name")
            begun = upload_rows.begun_by(row)
            ids = ADAPTER.parse(begun.parent, "parent")
            adapters.find(session, ids["tenant"], ids["adapter"])
            base = base_models.find(session, begun.version.base_model.digest, "version.base_model.digest")
            received = upload_rows.received_bytes(session, row)
            parts = [upload_rows.part_keys(session, row, file.path) for file in begun.version.files]
        keys = self._keys(request.name, begun, received, parts)
        stored = self._store(request.name, begun.version, keys)
        published = self._publish(request, begun, base, stored)
        if not request.validate_only:
            delete_objects(self._blobs, request.name)
        return published

    def _keys(
        self, name: str, begun: pb.CreateUploadRequest, received: dict[str, int], parts: Sequence[list[str]]
    ) -> list[list[str]]:
        """Of each file, under which keys its bytes lie."""
        keys, missing = [], []
        for index, (file, part_keys) in enumerate(zip(begun.version.files, parts, strict=True)):
            lacking = file.size_bytes - received.get(file.path, 0)
            put_key = upload_rows.put_key(name, index)
            if lacking == 0:
                keys.append(part_keys)
            elif begun.sign_put_requests and self._blobs.size_bytes(put_key) == file.size_bytes:
                keys.append([put_key])
            else:
                missing.append(f"{lacking} bytes of {shown(file.path)}")
        if missing:
            raise FailedPreconditionError(
                f"there are missing {', '.join(missing)}; send them, then complete the upload",
                reason="UPLOAD_INCOMPLETE",
                metadata={"upload": name},
            )
        return keys

    def _store(self, name: str, version: pb.Version, keys: Sequence[Sequence[str]]) -> list[StoredFile]:
        stored: list[StoredFile] = []
        try:
            for index, (file, keys_of_file) in enumerate(zip(version.files, keys, strict=True)):
                try:
                    stored.append(self._storer.store_content(self._pieces(keys_of_file), file, f"files[{index}].file"))
                except (InvalidArgumentError, NotFoundError) as error:
                    self._drop(name, file.path, [*keys_of_file, upload_rows.put_key(name, index)])
                    raise _dropped(error, file.path) from error
        except BaseException:
            self._storer.discard(stored)
            raise
        return stored

    def _pieces(self, keys: Sequence[str]) -> Iterator[bytes]:
        for key in keys:
            yield from self._blobs.stream(key)

    def _drop(self, name: str, path: str, keys: Sequence[str]) -> None:
        """Forgets a file's bytes."""
        with self._database.transaction() as session:
            upload_rows.drop_parts(session, upload_rows.find(session, name, "name", lock=True), path)
        self._blobs.delete_many(keys)

    def _publish(
        self,
        request: pb.CompleteUploadRequest,
        begun: pb.CreateUploadRequest,
        base: KnownBase,
        stored: Sequence[StoredFile],
    ) -> pb.Version:
        headers = {file.path: file.header for file in stored if file.header is not None}
        try:
            weights = summarize(headers, base, "files")
        except InvalidArgumentError:
            self._storer.discard(stored)
            raise
        draft = VersionDraft(
            version=begun.version,
            manifest=canonical_manifest(begun.version),
            stored=stored,
            family=base.family,
            weights=weights,
        )

        def end(session: Session) -> None:
            session.delete(upload_rows.find(session, request.name, "name", lock=True))

        return self._committer.commit(request, ADAPTER.parse(begun.parent, "parent"), draft, also=end)


def delete_objects(blobs: BlobStore, name: str) -> None:
    """Deletes what the bucket has of an upload that is gone."""
    try:
        blobs.delete_many(blobs.keys(upload_rows.folder(name)))
    except AtelierError as error:
        _log.warning("objects of an upload left behind", upload=name, reason=error.reason)


def _dropped(error: InvalidArgumentError | NotFoundError, path: str) -> AtelierError:
    """What tells that a file's bytes were dropped."""
    if isinstance(error, InvalidArgumentError):
        first = error.violations[0]
        return InvalidArgumentError(
            first.field,
            f"{first.description}; what had arrived of {shown(path)} is dropped, send the right bytes again",
            reason=error.reason,
        )
    return FailedPreconditionError(
        f"the object store has lost bytes of {shown(path)}; what is left of them is dropped, send the file again",
        reason="UPLOAD_INCOMPLETE",
    )
