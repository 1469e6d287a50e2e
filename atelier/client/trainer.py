"""Client of the trainer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from atelier.client.connection import OWN_TENANT, Connection, fresh_request_id, paged
from atelier.errors import InvalidArgumentError
from atelier.pb.trainer.v1 import trainer_pb2 as pb
from atelier.pb.trainer.v1.trainer_pb2_grpc import TrainerServiceStub
from atelier.rpc.names import shown
from atelier.rpc.status import translated_errors
from atelier.rpc.uploads import describe_file, pieces_of


def dataset_name(dataset: str) -> str:
    """Full name of one of the caller's datasets."""
    return f"{OWN_TENANT}/datasets/{dataset}"


def job_name(job: str) -> str:
    """Full name of one of the caller's jobs."""
    return f"{OWN_TENANT}/jobs/{job}"


class TrainerClient:
    """Datasets, jobs and batches of the caller's tenant, named by their ids."""

    def __init__(self, connection: Connection) -> None:
        self._stub = TrainerServiceStub(connection.channel)

    def create_dataset(
        self,
        dataset: str,
        images: Sequence[tuple[str, bytes, str]],
        *,
        masks: Mapping[str, tuple[str, bytes]] | None = None,
        on_sent: Callable[[int], None] = lambda size_bytes: None,
    ) -> pb.Dataset:
        """Creates a dataset of (file name, bytes, caption).

        Args:
            masks: (file name, bytes) by the file name of the image that they belong to.
            on_sent: hears of the size in bytes of each piece sent.
        """
        spec = pb.CreateDatasetSpec(parent=OWN_TENANT, dataset_id=dataset, request_id=fresh_request_id())
        contents = []
        if unknown := sorted((masks or {}).keys() - {file_name for file_name, _, _ in images}):
            raise InvalidArgumentError("masks", f"has {shown(unknown[0])}, which is none of the images")
        for file_name, content, caption in images:
            mask_name, mask = (masks or {}).get(file_name, ("", None))
            image = pb.DatasetImage(file=describe_file(file_name, content), caption=caption)
            contents.append(content)
            if mask is not None:
                image.mask.CopyFrom(describe_file(mask_name, mask))
                contents.append(mask)
            spec.dataset.images.append(image)

        def messages() -> Iterator[pb.CreateDatasetRequest]:
            yield pb.CreateDatasetRequest(spec=spec)
            for piece in pieces_of(contents):
                yield pb.CreateDatasetRequest(data=piece)
                on_sent(len(piece))

        with translated_errors():
            return self._stub.CreateDataset(messages())

    def dataset(self, dataset: str) -> pb.Dataset:
        """One dataset."""
        with translated_errors():
            return self._stub.GetDataset(pb.GetDatasetRequest(name=dataset_name(dataset)))

    def datasets(self) -> Iterator[pb.Dataset]:
        """All datasets, by name."""
        return paged(self._stub.ListDatasets, pb.ListDatasetsRequest(parent=OWN_TENANT), "datasets")

    def create_job(self, job: pb.Job, *, job_id: str = "", validate_only: bool = False) -> pb.Job:
        """Creates a job; `job.dataset` is a full name (see `dataset_name`)."""
        request = pb.CreateJobRequest(
            parent=OWN_TENANT, job_id=job_id, job=job, request_id=fresh_request_id(), validate_only=validate_only
        )
        with translated_errors():
            return self._stub.CreateJob(request)

    def job(self, job: str) -> pb.Job:
        """One job."""
        with translated_errors():
            return self._stub.GetJob(pb.GetJobRequest(name=job_name(job)))

    def jobs(self) -> Iterator[pb.Job]:
        """All jobs, newest first."""
        return paged(self._stub.ListJobs, pb.ListJobsRequest(parent=OWN_TENANT), "jobs")

    def watch(self, job: str) -> Iterator[pb.WatchJobResponse]:
        """The job's present state, then every change until its end."""
        with translated_errors():
            yield from self._stub.WatchJob(pb.WatchJobRequest(name=job_name(job)))

    def cancel(self, job: str) -> pb.Job:
        """Asks a job to stop."""
        with translated_errors():
            return self._stub.CancelJob(pb.CancelJobRequest(name=job_name(job), request_id=fresh_request_id()))

    def create_batch(self, jobs: Sequence[pb.Job], *, batch_id: str = "", validate_only: bool = False) -> pb.Batch:
        """Creates many jobs, all or none."""
        request = pb.CreateBatchRequest(
            parent=OWN_TENANT, batch_id=batch_id, jobs=jobs, request_id=fresh_request_id(), validate_only=validate_only
        )
        with translated_errors():
            return self._stub.CreateBatch(request)

    def batch(self, batch: str) -> pb.Batch:
        """One batch."""
        with translated_errors():
            return self._stub.GetBatch(pb.GetBatchRequest(name=f"{OWN_TENANT}/batches/{batch}"))
