"""The RPCs of MaintenanceService. Handlers that are plain functions run in threads."""

from __future__ import annotations

from collections.abc import AsyncIterator

from grpc.aio import ServicerContext

from atelier.pb.registry.v1 import maintenance_pb2 as pb
from atelier.pb.registry.v1.maintenance_pb2_grpc import MaintenanceServiceServicer
from atelier.storage.database import Database
from atelier.storage.requests import perform
from services.registry.garbage import Collector
from services.registry.quota import Quotas
from services.registry.scrub import Scrubber
from services.registry.tables import Request


class MaintenanceServicer(MaintenanceServiceServicer):
    """MaintenanceService over a database and a bucket."""

    def __init__(self, database: Database, collector: Collector, scrubber: Scrubber, quotas: Quotas) -> None:
        self._database = database
        self._collector = collector
        self._scrubber = scrubber
        self._quotas = quotas

    def CollectGarbage(self, request: pb.CollectGarbageRequest, context: ServicerContext) -> pb.CollectGarbageResponse:
        return self._collector.count() if request.validate_only else self._collector.collect()

    async def Scrub(self, request: pb.ScrubRequest, context: ServicerContext) -> AsyncIterator[pb.ScrubResponse]:
        async for response in self._scrubber.scrub(request):
            yield response

    def UpdateQuota(self, request: pb.UpdateQuotaRequest, context: ServicerContext) -> pb.Quota:
        return perform(
            self._database, Request, request, pb.Quota, lambda session: self._quotas.update(session, request)
        )

    def GetQuota(self, request: pb.GetQuotaRequest, context: ServicerContext) -> pb.Quota:
        with self._database.transaction(read_only=True) as session:
            return self._quotas.get(session, request)
