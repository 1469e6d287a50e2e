"""The RPCs of RegistryService. Handlers that only read and write SQL are plain functions; they run in threads."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from typing import Any, TypeVar

from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message
from grpc.aio import ServicerContext
from sqlalchemy.orm import Session

from atelier.pb.registry.v1 import registry_pb2 as pb
from atelier.pb.registry.v1.registry_pb2_grpc import RegistryServiceServicer
from atelier.storage.database import Database
from atelier.storage.requests import perform
from services.registry import adapters, aliases, deletion, retention, search, versions
from services.registry.downloads import Downloader
from services.registry.exports import Exporter
from services.registry.imports import Importer
from services.registry.publish import Publisher
from services.registry.quota import Quotas
from services.registry.tables import Request
from services.registry.uploads import Uploader

Answer = TypeVar("Answer", bound=Message)


class RegistryServicer(RegistryServiceServicer):
    """RegistryService over a database and a bucket."""

    def __init__(
        self,
        database: Database,
        publisher: Publisher,
        importer: Importer,
        uploader: Uploader,
        downloader: Downloader,
        exporter: Exporter,
        quotas: Quotas,
        *,
        delete_grace: timedelta,
    ) -> None:
        self._database = database
        self._publisher = publisher
        self._importer = importer
        self._uploader = uploader
        self._downloader = downloader
        self._exporter = exporter
        self._quotas = quotas
        self._delete_grace = delete_grace

    def GetTenant(self, request: pb.GetTenantRequest, context: ServicerContext) -> pb.Tenant:
        return self._read(self._quotas.get_tenant, request)

    def CreateAdapter(self, request: pb.CreateAdapterRequest, context: ServicerContext) -> pb.Adapter:
        return self._write(adapters.create, request, pb.Adapter)

    def GetAdapter(self, request: pb.GetAdapterRequest, context: ServicerContext) -> pb.Adapter:
        return self._read(adapters.get, request)

    def ListAdapters(self, request: pb.ListAdaptersRequest, context: ServicerContext) -> pb.ListAdaptersResponse:
        return self._read(search.list_adapters, request)

    def UpdateAdapter(self, request: pb.UpdateAdapterRequest, context: ServicerContext) -> pb.Adapter:
        return self._write(adapters.update, request, pb.Adapter)

    def DeleteAdapter(self, request: pb.DeleteAdapterRequest, context: ServicerContext) -> pb.Adapter:
        return self._write(deletion.delete_adapter, request, pb.Adapter, grace=self._delete_grace)

    def UndeleteAdapter(self, request: pb.UndeleteAdapterRequest, context: ServicerContext) -> pb.Adapter:
        return self._write(deletion.undelete_adapter, request, pb.Adapter)

    async def PublishVersion(
        self, request_iterator: AsyncIterator[pb.PublishVersionRequest], context: ServicerContext
    ) -> pb.Version:
        return await self._publisher.publish(request_iterator)

    async def ImportVersion(
        self, request_iterator: AsyncIterator[pb.ImportVersionRequest], context: ServicerContext
    ) -> pb.Version:
        return await self._importer.import_version(request_iterator)

    def GetVersion(self, request: pb.GetVersionRequest, context: ServicerContext) -> pb.Version:
        return self._read(versions.get, request)

    def ListVersions(self, request: pb.ListVersionsRequest, context: ServicerContext) -> pb.ListVersionsResponse:
        return self._read(search.list_versions, request)

    def ResolveVersion(self, request: pb.ResolveVersionRequest, context: ServicerContext) -> pb.Version:
        return self._read(aliases.resolve, request)

    def DeleteVersion(self, request: pb.DeleteVersionRequest, context: ServicerContext) -> pb.Version:
        return self._write(deletion.delete_version, request, pb.Version, grace=self._delete_grace)

    def UndeleteVersion(self, request: pb.UndeleteVersionRequest, context: ServicerContext) -> pb.Version:
        return self._write(deletion.undelete_version, request, pb.Version)

    def PurgeDeleted(self, request: pb.PurgeDeletedRequest, context: ServicerContext) -> pb.PurgeDeletedResponse:
        return self._write(deletion.purge_deleted, request, pb.PurgeDeletedResponse)

    def ApplyRetention(self, request: pb.ApplyRetentionRequest, context: ServicerContext) -> pb.ApplyRetentionResponse:
        return self._write(retention.apply, request, pb.ApplyRetentionResponse, grace=self._delete_grace)

    async def DownloadFile(
        self, request: pb.DownloadFileRequest, context: ServicerContext
    ) -> AsyncIterator[pb.DownloadFileResponse]:
        async for response in self._downloader.download(request):
            yield response

    def SignDownload(self, request: pb.SignDownloadRequest, context: ServicerContext) -> pb.SignDownloadResponse:
        return self._downloader.sign(request)

    async def ExportVersion(
        self, request: pb.ExportVersionRequest, context: ServicerContext
    ) -> AsyncIterator[pb.ExportVersionResponse]:
        async for response in self._exporter.export(request):
            yield response

    def CreateUpload(self, request: pb.CreateUploadRequest, context: ServicerContext) -> pb.Upload:
        return self._uploader.create(request)

    async def WriteUpload(
        self, request_iterator: AsyncIterator[pb.WriteUploadRequest], context: ServicerContext
    ) -> pb.Upload:
        return await self._uploader.write(request_iterator)

    def GetUpload(self, request: pb.GetUploadRequest, context: ServicerContext) -> pb.Upload:
        return self._uploader.get(request)

    async def CompleteUpload(self, request: pb.CompleteUploadRequest, context: ServicerContext) -> pb.Version:
        return await self._uploader.complete(request)

    def DeleteUpload(self, request: pb.DeleteUploadRequest, context: ServicerContext) -> Empty:
        return self._uploader.delete(request)

    def UpdateAlias(self, request: pb.UpdateAliasRequest, context: ServicerContext) -> pb.Alias:
        return self._write(aliases.update, request, pb.Alias)

    def GetAlias(self, request: pb.GetAliasRequest, context: ServicerContext) -> pb.Alias:
        return self._read(aliases.get, request)

    def ListAliases(self, request: pb.ListAliasesRequest, context: ServicerContext) -> pb.ListAliasesResponse:
        return self._read(aliases.list_page, request)

    def DeleteAlias(self, request: pb.DeleteAliasRequest, context: ServicerContext) -> Empty:
        return self._write(aliases.delete, request, Empty)

    def ListAliasMoves(self, request: pb.ListAliasMovesRequest, context: ServicerContext) -> pb.ListAliasMovesResponse:
        return self._read(search.list_alias_moves, request)

    def _read(self, work: Callable[[Session, Any], Answer], request: Message) -> Answer:
        with self._database.transaction(read_only=True) as session:
            return work(session, request)

    def _write(self, work: Callable[..., Answer], request: Message, kind: type[Answer], **options: timedelta) -> Answer:
        return perform(self._database, Request, request, kind, lambda session: work(session, request, **options))
