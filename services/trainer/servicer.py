"""The trainer's RPCs: each hands over to the module that knows."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from grpc.aio import ServicerContext

from atelier.pb.trainer.v1 import trainer_pb2 as pb
from atelier.pb.trainer.v1.trainer_pb2_grpc import TrainerServiceServicer
from atelier.rpc.names import TENANT
from atelier.rpc.pages import MAX_NUMBER, Page, parse_page
from atelier.rpc.uploads import data_pieces, first_spec
from services.trainer.batches import Batches
from services.trainer.datasets import Datasets
from services.trainer.jobs import Jobs
from services.trainer.watching import Watcher

_Upload = AsyncIterator[pb.CreateDatasetRequest]
_ListRequest = pb.ListDatasetsRequest | pb.ListJobsRequest | pb.ListBatchesRequest
_JobStream = AsyncIterator[pb.WatchJobResponse]


class TrainerServicer(TrainerServiceServicer):
    """Serves `atelier.trainer.v1.TrainerService`; the contract says what each method does."""

    def __init__(self, datasets: Datasets, jobs: Jobs, batches: Batches, watcher: Watcher) -> None:
        self._datasets = datasets
        self._jobs = jobs
        self._batches = batches
        self._watcher = watcher

    async def CreateDataset(
        self, request_iterator: AsyncIterator[pb.CreateDatasetRequest], context: ServicerContext
    ) -> pb.Dataset:
        spec: pb.CreateDatasetSpec = await first_spec(request_iterator, "an upload")
        answer = await asyncio.to_thread(self._datasets.begin, spec)
        if answer is not None:
            return answer
        return await self._datasets.receive(spec, data_pieces(request_iterator))

    def GetDataset(self, request: pb.GetDatasetRequest, context: ServicerContext) -> pb.Dataset:
        return self._datasets.get(request.name)

    def ListDatasets(self, request: pb.ListDatasetsRequest, context: ServicerContext) -> pb.ListDatasetsResponse:
        return self._datasets.list(_page(request, "datasets"))

    def CreateJob(self, request: pb.CreateJobRequest, context: ServicerContext) -> pb.Job:
        return self._jobs.create(request)

    def GetJob(self, request: pb.GetJobRequest, context: ServicerContext) -> pb.Job:
        return self._jobs.get(request.name)

    def ListJobs(self, request: pb.ListJobsRequest, context: ServicerContext) -> pb.ListJobsResponse:
        return self._jobs.list(_page(request, "jobs", first=MAX_NUMBER))

    async def WatchJob(
        self, request: pb.WatchJobRequest, context: ServicerContext
    ) -> AsyncIterator[pb.WatchJobResponse]:
        async for response in self._watcher.watch(request.name):
            yield response

    def CancelJob(self, request: pb.CancelJobRequest, context: ServicerContext) -> pb.Job:
        return self._jobs.cancel(request)

    def CreateBatch(self, request: pb.CreateBatchRequest, context: ServicerContext) -> pb.Batch:
        return self._batches.create(request)

    def GetBatch(self, request: pb.GetBatchRequest, context: ServicerContext) -> pb.Batch:
        return self._batches.get(request.name)

    def ListBatches(self, request: pb.ListBatchesRequest, context: ServicerContext) -> pb.ListBatchesResponse:
        return self._batches.list(_page(request, "batches", first=MAX_NUMBER))


def _page(request: _ListRequest, collection: str, *, first: str | int = "") -> Page:
    parent = TENANT.parse(request.parent, "parent")["tenant"]
    return parse_page(request.page_size, request.page_token, collection, parent, first=first)
