"""The RPCs of the registry. Handlers that only read and write SQL are plain functions; they run in threads."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

from grpc.aio import ServicerContext

from atelier.errors import DataLossError, NotFoundError
from atelier.pb.registry.v1 import registry_pb2 as pb
from atelier.pb.registry.v1.registry_pb2_grpc import RegistryServiceServicer
from atelier.storage.blobs import BlobStore, content_key
from atelier.storage.database import Database
from services.registry import adapters, aliases, versions
from services.registry.publish import Publisher
from services.registry.tables import FileRow


class RegistryServicer(RegistryServiceServicer):
    """RegistryService over a database and a bucket."""

    def __init__(self, database: Database, blobs: BlobStore, publisher: Publisher) -> None:
        self._database = database
        self._blobs = blobs
        self._publisher = publisher

    def GetTenant(self, request: pb.GetTenantRequest, context: ServicerContext) -> pb.Tenant:
        with self._database.transaction(read_only=True) as session:
            return adapters.get_tenant(session, request)

    def CreateAdapter(self, request: pb.CreateAdapterRequest, context: ServicerContext) -> pb.Adapter:
        with self._database.transaction() as session:
            return adapters.create(session, request)

    def GetAdapter(self, request: pb.GetAdapterRequest, context: ServicerContext) -> pb.Adapter:
        with self._database.transaction(read_only=True) as session:
            return adapters.get(session, request)

    def ListAdapters(self, request: pb.ListAdaptersRequest, context: ServicerContext) -> pb.ListAdaptersResponse:
        with self._database.transaction(read_only=True) as session:
            return adapters.list_page(session, request)

    async def PublishVersion(
        self, request_iterator: AsyncIterator[pb.PublishVersionRequest], context: ServicerContext
    ) -> pb.Version:
        return await self._publisher.publish(request_iterator)

    def GetVersion(self, request: pb.GetVersionRequest, context: ServicerContext) -> pb.Version:
        with self._database.transaction(read_only=True) as session:
            return versions.get(session, request)

    def ListVersions(self, request: pb.ListVersionsRequest, context: ServicerContext) -> pb.ListVersionsResponse:
        with self._database.transaction(read_only=True) as session:
            return versions.list_page(session, request)

    def ResolveVersion(self, request: pb.ResolveVersionRequest, context: ServicerContext) -> pb.Version:
        with self._database.transaction(read_only=True) as session:
            return aliases.resolve(session, request)

    async def DownloadFile(
        self, request: pb.DownloadFileRequest, context: ServicerContext
    ) -> AsyncIterator[pb.DownloadFileResponse]:
        file = await asyncio.to_thread(self._find_file, request)
        async for piece in _in_thread(_whole(self._blobs, file)):
            yield pb.DownloadFileResponse(data=piece)

    def UpdateAlias(self, request: pb.UpdateAliasRequest, context: ServicerContext) -> pb.Alias:
        with self._database.transaction() as session:
            return aliases.update(session, request)

    def GetAlias(self, request: pb.GetAliasRequest, context: ServicerContext) -> pb.Alias:
        with self._database.transaction(read_only=True) as session:
            return aliases.get(session, request)

    def ListAliases(self, request: pb.ListAliasesRequest, context: ServicerContext) -> pb.ListAliasesResponse:
        with self._database.transaction(read_only=True) as session:
            return aliases.list_page(session, request)

    def _find_file(self, request: pb.DownloadFileRequest) -> FileRow:
        with self._database.transaction(read_only=True) as session:
            return versions.find_file(session, request)


def _whole(blobs: BlobStore, file: FileRow) -> Iterator[bytes]:
    """The bytes of a file. DataLossError when the store has fewer, more, or none of them."""
    missing = file.size_bytes
    try:
        for piece in blobs.stream(content_key(file.sha256)):
            missing -= len(piece)
            yield piece
    except NotFoundError as error:
        raise DataLossError(f"the store has lost {file.path}", reason="CONTENT_LOST") from error
    if missing:
        raise DataLossError(f"the store has {file.path} at another length", reason="CONTENT_LOST")


async def _in_thread(pieces: Iterator[bytes]) -> AsyncIterator[bytes]:
    """The items of a blocking iterator, each fetched in a thread, so that the event loop never waits."""
    while (piece := await asyncio.to_thread(next, pieces, None)) is not None:
        yield piece
