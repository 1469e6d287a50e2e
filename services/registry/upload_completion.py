"""Completing an upload: every file's bytes are read back from S3, hashed, checked and stored, then published as usual.

A file that turns out to be another than was declared is dropped, so that the right one can be sent; all else of the
upload stays as it was. Once the version is visible the upload is gone. Its objects are deleted then; those that cannot
be deleted are left to the garbage collection.

It may take minutes, so few are completed at a time, in threads of their own. A call that is cancelled stops at the next
piece; only its commit, when begun, goes on to the end.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import structlog
from sqlalchemy.orm import Session

from atelier.errors import (
    AbortedError,
    AtelierError,
    CancelledError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
)
from atelier.pb.registry.v1 import registry_pb2 as pb
from atelier.rpc.names import ADAPTER, UPLOAD, shown
from atelier.storage.blobs import BlobStore
from atelier.storage.database import Database
from atelier.storage.requests import earlier_answer
from services.registry import adapters, base_models, upload_rows
from services.registry.base_models import KnownBase
from services.registry.commit import Committer, VersionDraft
from services.registry.storing import StoredFile, Storer, check_tensor_count
from services.registry.streams import submit
from services.registry.tables import Request

MAX_COMPLETIONS = 4
"""At the same time; others wait for their turn."""
_MAX_SHOWN = 3
_log = structlog.get_logger("atelier.registry")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Running:
    """A call that completes an upload, or waits for its turn to do so."""

    request: pb.CompleteUploadRequest
    is_cancelled: threading.Event = field(default_factory=threading.Event)
    has_ended: asyncio.Event = field(default_factory=asyncio.Event)


class Completer:
    """Publishes uploads."""

    def __init__(self, database: Database, blobs: BlobStore, storer: Storer, committer: Committer) -> None:
        self._database = database
        self._blobs = blobs
        self._storer = storer
        self._committer = committer
        self._running: dict[str, _Running] = {}
        """By the upload's name."""
        self._turns = asyncio.Semaphore(MAX_COMPLETIONS)
        self._threads = ThreadPoolExecutor(MAX_COMPLETIONS, thread_name_prefix="completing")

    async def complete(self, request: pb.CompleteUploadRequest) -> pb.Version:
        """Serves one CompleteUpload call. AbortedError while another call completes the same upload."""
        name = UPLOAD.format(**UPLOAD.parse(request.name, "name"))
        while (other := self._running.get(name)) is not None:
            if not request.request_id or request != other.request:
                raise AbortedError(
                    f"{name} is being completed by another call; see what comes of it",
                    reason="UPLOAD_BUSY",
                    metadata={"upload": name},
                )
            await other.has_ended.wait()  # a retry of it, which gets the same answer
        running = self._running[name] = _Running(request=request)
        try:
            async with self._turns:
                return await self._in_thread(running)
        finally:
            del self._running[name]
            running.has_ended.set()

    async def _in_thread(self, running: _Running) -> pb.Version:
        """Returns when the thread is done, even when the call is cancelled meanwhile."""
        work = submit(self._threads, self._complete, running)
        try:
            await asyncio.wait((work,))
        except asyncio.CancelledError:
            running.is_cancelled.set()
            await asyncio.wait((work,))
            work.exception()  # the call's own end is what is told
            raise
        return work.result()

    def _complete(self, running: _Running) -> pb.Version:
        request = running.request
        earlier = self._earlier(request)
        if earlier is not None:
            return earlier
        try:
            return self._read_and_publish(running)
        except AtelierError:
            # An earlier call of this request, which the client had given up, may have ended it meanwhile.
            earlier = self._earlier(request)
            if earlier is None:
                raise
            return earlier

    def _earlier(self, request: pb.CompleteUploadRequest) -> pb.Version | None:
        with self._database.transaction(read_only=True) as session:
            return earlier_answer(session, Request, request, pb.Version)

    def _read_and_publish(self, running: _Running) -> pb.Version:
        request = running.request
        with self._database.transaction(read_only=True) as session:
            row = upload_rows.find(session, request.name, "name")
            begun = upload_rows.begun_by(row)
            ids = ADAPTER.parse(begun.parent, "parent")
            adapters.find(session, ids["tenant"], ids["adapter"])
            base = base_models.find(session, begun.version.base_model.digest, "version.base_model.digest")
            received = upload_rows.received_bytes(session, row)
            parts = [upload_rows.part_keys(session, row, file.path) for file in begun.version.files]
        keys = self._keys(request.name, begun, received, parts)
        stored = self._store(running, begun.version, keys)
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
            more = f" and {len(missing) - _MAX_SHOWN} more" if len(missing) > _MAX_SHOWN else ""
            raise FailedPreconditionError(
                f"there are missing {', '.join(missing[:_MAX_SHOWN])}{more}; send them, then complete the upload",
                reason="UPLOAD_INCOMPLETE",
                metadata={"upload": name},
            )
        return keys

    def _store(self, running: _Running, version: pb.Version, keys: Sequence[list[str]]) -> list[StoredFile]:
        with self._storer.all_or_none() as stored:
            for index, (file, keys_of_file) in enumerate(zip(version.files, keys, strict=True)):
                try:
                    pieces = self._pieces(keys_of_file, running.is_cancelled)
                    stored.append(self._storer.store_content(pieces, file, f"files[{index}].file"))
                except (InvalidArgumentError, NotFoundError) as error:
                    if not running.request.validate_only:
                        self._drop(running.request.name, file.path, keys_of_file)
                    raise _with_advice(error, file.path, is_dropped=not running.request.validate_only) from error
                check_tensor_count(stored, "files")
        return stored

    def _pieces(self, keys: Sequence[str], is_cancelled: threading.Event) -> Iterator[bytes]:
        for key in keys:
            for piece in self._blobs.stream(key):
                if is_cancelled.is_set():
                    raise CancelledError("the call was broken off")
                yield piece

    def _drop(self, name: str, path: str, keys: list[str]) -> None:
        """Forgets a file's bytes that lie under these keys; not those that have come in their place since."""
        with self._database.transaction() as session:
            row = upload_rows.find(session, name, "name", lock=True)
            if upload_rows.part_keys(session, row, path) == keys:
                upload_rows.drop_parts(session, row, path)
        self._blobs.delete_many(keys)

    def _publish(
        self,
        request: pb.CompleteUploadRequest,
        begun: pb.CreateUploadRequest,
        base: KnownBase,
        stored: Sequence[StoredFile],
    ) -> pb.Version:
        draft = VersionDraft(version=begun.version, stored=stored, base=base, files_field="files")

        def end(session: Session) -> None:
            session.delete(upload_rows.find(session, request.name, "name", lock=True))

        return self._committer.commit(request, ADAPTER.parse(begun.parent, "parent"), draft, also=end)


def delete_objects(blobs: BlobStore, name: str) -> None:
    """Deletes what the bucket has of an upload that is gone."""
    try:
        blobs.delete_many(blobs.keys(upload_rows.folder(name)))
    except AtelierError as error:
        _log.warning("objects of an upload left behind", upload=name, reason=error.reason)


def _with_advice(error: InvalidArgumentError | NotFoundError, path: str, *, is_dropped: bool) -> AtelierError:
    """What tells of a file's wrong or lost bytes, and what became of them."""
    advice = (
        f"what had arrived of {shown(path)} is dropped, send the right bytes again"
        if is_dropped
        else f"completing the upload would drop what has arrived of {shown(path)}"
    )
    if isinstance(error, InvalidArgumentError):
        first = error.violations[0]
        return InvalidArgumentError(first.field, f"{first.description}; {advice}", reason=error.reason)
    return FailedPreconditionError(f"the object store has lost bytes of a file; {advice}", reason="UPLOAD_INCOMPLETE")
