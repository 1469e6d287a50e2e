"""Downloads: a file of a version, or a range of it, through here or by a signed URL from the object store.

What was read is not hashed here: a range has no SHA-256, and whoever receives a whole file compares it. A store that
has fewer bytes than the registry knows of is a DataLossError.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Generator

from atelier.errors import AtelierError, DataLossError, InvalidArgumentError, NotFoundError
from atelier.pb.registry.v1 import registry_pb2 as pb
from atelier.rpc.names import shown
from atelier.storage.blobs import BlobStore
from atelier.storage.database import Database, to_timestamp
from atelier.storage.presigning import MAX_GET_SECONDS, Presigner, SignedRequest
from services.registry import contents, metrics, versions
from services.registry.content_tables import BlobRow
from services.registry.tables import FileRow

GET_SECONDS = 300
"""Of a signed URL, unless the request says otherwise."""


class Downloader:
    """Hands files out."""

    def __init__(self, database: Database, blobs: BlobStore, presigner: Presigner) -> None:
        self._database = database
        self._blobs = blobs
        self._presigner = presigner

    async def download(self, request: pb.DownloadFileRequest) -> AsyncIterator[pb.DownloadFileResponse]:
        """Serves one DownloadFile call."""
        file, key = await asyncio.to_thread(self._find, request)
        limit_bytes = _checked_limit(request, file.size_bytes)
        if limit_bytes == 0:
            return
        missing = limit_bytes
        try:
            async for piece in _read_ahead(self._blobs.stream(key, request.offset_bytes, limit_bytes)):
                missing -= len(piece)
                metrics.SERVED_BYTES.inc(len(piece))
                yield pb.DownloadFileResponse(data=piece)
        except NotFoundError:
            pass  # as if there were no bytes
        if missing:
            await asyncio.to_thread(self._mark_rotten, file.sha256, key)
            raise DataLossError(
                f"the object store has not all bytes of {request.version}, {shown(request.path)}", reason="CONTENT_LOST"
            )

    def sign(self, request: pb.SignDownloadRequest) -> pb.SignDownloadResponse:
        """Serves one SignDownload call."""
        lifetime_seconds = request.lifetime.seconds if request.HasField("lifetime") else GET_SECONDS
        if not 1 <= lifetime_seconds <= MAX_GET_SECONDS:
            raise InvalidArgumentError(
                "lifetime", f"is {lifetime_seconds} seconds; 1 to {MAX_GET_SECONDS} seconds are allowed"
            )
        _, key = self._find(request)
        return pb.SignDownloadResponse(get=signed_message(self._presigner.get(key, lifetime_seconds=lifetime_seconds)))

    def _find(self, request: pb.DownloadFileRequest | pb.SignDownloadRequest) -> tuple[FileRow, str]:
        """The file, and where its content lies."""
        with self._database.transaction(read_only=True) as session:
            file = versions.find_file(session, request)
            return file, session.get_one(BlobRow, file.sha256).object_key

    def _mark_rotten(self, sha256: str, key: str) -> None:
        # When that fails, whoever reads it next tries again.
        with contextlib.suppress(AtelierError), self._database.transaction() as session:
            contents.mark_rotten(session, sha256, key)


def signed_message(signed: SignedRequest) -> pb.SignedRequest:
    """A signed request as the API tells it."""
    return pb.SignedRequest(url=signed.url, headers=signed.headers, expire_time=to_timestamp(signed.expire_time))


def _checked_limit(request: pb.DownloadFileRequest, size_bytes: int) -> int:
    """How many bytes the request asks for."""
    if not 0 <= request.offset_bytes <= size_bytes:
        raise InvalidArgumentError(
            "offset_bytes", f"is {request.offset_bytes}; 0 to {size_bytes}, the file's size, are allowed"
        )
    if request.limit_bytes < 0:
        raise InvalidArgumentError("limit_bytes", f"is {request.limit_bytes}; 0 (up to the end) or more are allowed")
    rest = size_bytes - request.offset_bytes
    return min(request.limit_bytes or rest, rest)


async def _read_ahead(pieces: Generator[bytes, None, None]) -> AsyncIterator[bytes]:
    """The pieces, the next one read in a thread while one is sent. However it ends, `pieces` is closed."""
    loop = asyncio.get_running_loop()
    reading = loop.run_in_executor(None, next, pieces, b"")
    try:
        while piece := await asyncio.shield(reading):
            reading = loop.run_in_executor(None, next, pieces, b"")
            yield piece
    finally:

        def close(read: asyncio.Future[bytes]) -> None:
            read.exception()  # nobody else looks at it when the call was cancelled
            pieces.close()

        reading.add_done_callback(close)  # a generator cannot be closed while a thread is inside
