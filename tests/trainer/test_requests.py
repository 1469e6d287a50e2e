"""Every mutating RPC of TrainerService: a retry with its `request_id` is safe, and `validate_only` changes nothing."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import update

from atelier.client import Connection, TrainerClient
from atelier.errors import AtelierError, InvalidArgumentError
from atelier.local.process import wait_until
from atelier.pb.common.v1.common_pb2 import File
from atelier.pb.trainer.v1 import trainer_pb2 as pb
from atelier.pb.trainer.v1.trainer_pb2_grpc import TrainerServiceStub
from atelier.rpc.status import translated_errors
from atelier.storage.database import Database, utc_now
from atelier.storage.requests import KEPT
from services.trainer.main import MIGRATIONS
from services.trainer.tables import TrainerRequest
from tests.harness.calls import fields_of
from tests.harness.trainer import TrainerServer, image_bytes, quick_job

OWN = "tenants/-"
DATASET = f"{OWN}/datasets/small"
RACERS = 8
IMAGE = image_bytes()
ALIVE = (pb.JOB_STATE_QUEUED, pb.JOB_STATE_RUNNING)
SERVICE = pb.DESCRIPTOR.services_by_name["TrainerService"]


def job(**config: Any) -> pb.Job:
    """One that goes on until it is cancelled."""
    return quick_job(DATASET, max_train_steps=20_000, checkpointing_steps=20_000, **config)


def dataset_spec(dataset_id: str) -> pb.CreateDatasetSpec:
    """What creates a dataset of one image."""
    file = File(path="a.png", size_bytes=len(IMAGE), sha256=hashlib.sha256(IMAGE).hexdigest())
    images = [pb.DatasetImage(file=file)]
    return pb.CreateDatasetSpec(parent=OWN, dataset_id=dataset_id, dataset=pb.Dataset(images=images))


def cancel(job_id: str) -> pb.CancelJobRequest:
    """What cancels a job."""
    return pb.CancelJobRequest(name=f"{OWN}/jobs/{job_id}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """A mutating request of a tenant who has the dataset `small` and the job `first`; a stream by its spec."""

    method: str
    request: Any
    """Succeeds."""
    wrong: Any
    """Fails."""
    reason: str
    """Why."""


CASES = [
    Case(
        method="CreateDataset",
        request=dataset_spec("another"),
        wrong=dataset_spec("small"),
        reason="DATASET_EXISTS",
    ),
    Case(
        method="CreateJob",
        request=pb.CreateJobRequest(parent=OWN, job_id="second", job=job()),
        wrong=pb.CreateJobRequest(parent=OWN, job_id="first", job=job()),
        reason="JOB_EXISTS",
    ),
    Case(method="CancelJob", request=cancel("first"), wrong=cancel("nothing"), reason="JOB_NOT_FOUND"),
    Case(
        method="CreateBatch",
        request=pb.CreateBatchRequest(parent=OWN, batch_id="all", jobs=[job(), job()]),
        wrong=pb.CreateBatchRequest(parent=OWN, batch_id="all", jobs=[job(), quick_job(f"{OWN}/datasets/nothing")]),
        reason="DATASET_NOT_FOUND",
    ),
]
each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.method)


@pytest.fixture(autouse=True)
def state(trainer: TrainerClient, dataset: str) -> Iterator[None]:
    """What the cases begin with; afterwards nothing runs."""
    trainer.create_job(job(), job_id="first")
    yield
    cancel_all(trainer)


def cancel_all(trainer: TrainerClient) -> None:
    """Cancels what waits or runs."""
    for found in trainer.jobs():
        if found.state in ALIVE:
            trainer.cancel(found.name.rsplit("/", 1)[1])


def everything(trainer: TrainerClient) -> list[Any]:
    """What the tenant has, but for how far its jobs are."""
    return [*trainer.datasets(), *[(found.name, found.state in ALIVE) for found in trainer.jobs()]]


def send(connection: Connection, case: Case, request: Any, **fields: Any) -> bytes:
    """Sends a request with these fields changed; the answer as it came."""
    changed = type(request)()
    changed.MergeFrom(request)
    for field, value in fields.items():
        setattr(changed, field, value)
    path = f"/{SERVICE.full_name}/{case.method}"
    with translated_errors():
        if not isinstance(changed, pb.CreateDatasetSpec):
            return connection.channel.unary_unary(path)(changed.SerializeToString())
        messages = [pb.CreateDatasetRequest(spec=changed), pb.CreateDatasetRequest(data=IMAGE)]
        return connection.channel.stream_unary(path)(message.SerializeToString() for message in messages)


@each_case
def test_retry_answers_the_same_bytes_whatever_has_happened_since(
    trainer_connection: Connection, trainer: TrainerClient, case: Case
) -> None:
    request_id = str(uuid.uuid4())
    first = send(trainer_connection, case, case.request, request_id=request_id)
    cancel_all(trainer)
    before = everything(trainer)
    for _ in range(3):
        assert send(trainer_connection, case, case.request, request_id=request_id) == first
    assert everything(trainer) == before


@each_case
def test_retries_at_the_same_time_are_one_request(trainer_connection: Connection, case: Case) -> None:
    request_id = str(uuid.uuid4())
    with ThreadPoolExecutor(RACERS) as pool:
        attempts = [
            pool.submit(send, trainer_connection, case, case.request, request_id=request_id) for _ in range(RACERS)
        ]
        assert len({attempt.result() for attempt in attempts}) == 1


@each_case
def test_request_id_of_another_request_is_refused(trainer_connection: Connection, case: Case) -> None:
    request_id = str(uuid.uuid4())
    send(trainer_connection, case, case.request, request_id=request_id)
    with pytest.raises(InvalidArgumentError) as caught:
        send(trainer_connection, case, case.wrong, request_id=request_id)
    assert caught.value.reason == "REQUEST_ID_REUSED"


@each_case
def test_validate_only_changes_nothing(trainer_connection: Connection, trainer: TrainerClient, case: Case) -> None:
    before = everything(trainer)
    assert send(trainer_connection, case, case.request, validate_only=True)
    assert everything(trainer) == before
    send(trainer_connection, case, case.request)
    assert everything(trainer) != before


@each_case
@pytest.mark.parametrize("validate_only", [True, False])
def test_what_is_refused_is_refused_alike_and_not_remembered(
    trainer_connection: Connection, trainer: TrainerClient, case: Case, validate_only: bool
) -> None:
    before, request_id = everything(trainer), str(uuid.uuid4())
    for _ in range(2):
        with pytest.raises(AtelierError) as caught:
            send(trainer_connection, case, case.wrong, request_id=request_id, validate_only=validate_only)
        assert caught.value.reason == case.reason
    assert everything(trainer) == before
    send(trainer_connection, case, case.request, request_id=request_id)


def test_spec_alone_is_checked_without_its_bytes(trainer_stub: TrainerServiceStub) -> None:
    spec = dataset_spec("another")
    spec.validate_only = True
    checked = trainer_stub.CreateDataset(iter([pb.CreateDatasetRequest(spec=spec)]))
    assert checked.name.endswith("/datasets/another")


def test_old_answers_are_forgotten(trainer_connection: Connection, trainer_server: TrainerServer) -> None:
    case, request_id = CASES[0], str(uuid.uuid4())
    send(trainer_connection, case, case.request, request_id=request_id)
    database = Database(trainer_server.database_url, MIGRATIONS)
    with database.transaction() as session:
        own = TrainerRequest.request_id == request_id
        session.execute(update(TrainerRequest).where(own).values(create_time=utc_now() - KEPT - timedelta(hours=1)))
    database.close()

    def is_new() -> bool:
        with pytest.raises(AtelierError) as caught:
            send(trainer_connection, case, case.wrong, request_id=request_id)
        return caught.value.reason == case.reason

    wait_until(is_new, timeout_seconds=30, what="the request is forgotten")


def test_every_rpc_with_a_request_id_is_tried() -> None:
    with_request_id = {each.name for each in SERVICE.methods if {"request_id", "validate_only"} <= fields_of(each)}
    assert with_request_id == {case.method for case in CASES}
