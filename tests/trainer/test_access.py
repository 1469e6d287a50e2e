"""Every RPC of the trainer: no credential, no answer; no tenant reaches another one's resources."""

from __future__ import annotations

from typing import Any

import grpc
import pytest

from atelier.errors import InvalidArgumentError, PermissionDeniedError, UnauthenticatedError
from atelier.pb.trainer.v1 import trainer_pb2 as pb
from atelier.pb.trainer.v1.trainer_pb2_grpc import TrainerServiceStub
from tests.harness.calls import call
from tests.harness.trainer import TrainerServer, quick_job

SERVICE = pb.DESCRIPTOR.services_by_name["TrainerService"]
METHODS = list(SERVICE.methods_by_name)


def request_for(method: str, tenant: str) -> Any:
    """A well-formed request about a tenant's resources."""
    parent = f"tenants/{tenant}"
    job = quick_job(f"{parent}/datasets/x")
    requests = [
        pb.CreateDatasetRequest(spec=pb.CreateDatasetSpec(parent=parent, dataset_id="x")),
        pb.GetDatasetRequest(name=f"{parent}/datasets/x"),
        pb.ListDatasetsRequest(parent=parent),
        pb.CreateJobRequest(parent=parent, job=job),
        pb.GetJobRequest(name=f"{parent}/jobs/x"),
        pb.ListJobsRequest(parent=parent),
        pb.WatchJobRequest(name=f"{parent}/jobs/x"),
        pb.CancelJobRequest(name=f"{parent}/jobs/x"),
        pb.CreateBatchRequest(parent=parent, jobs=[job]),
        pb.GetBatchRequest(name=f"{parent}/batches/x"),
        pb.ListBatchesRequest(parent=parent),
    ]
    return next(request for request in requests if request.DESCRIPTOR.name == f"{method}Request")


@pytest.mark.parametrize("method", METHODS)
def test_call_without_a_token_is_unauthenticated(trainer_server: TrainerServer, method: str) -> None:
    with grpc.insecure_channel(trainer_server.address) as channel, pytest.raises(UnauthenticatedError):
        call(TrainerServiceStub(channel), SERVICE, method, request_for(method, "-"))


@pytest.mark.parametrize("method", METHODS)
def test_name_of_another_tenant_is_denied(trainer_stub: TrainerServiceStub, method: str) -> None:
    with pytest.raises(PermissionDeniedError):
        call(trainer_stub, SERVICE, method, request_for(method, "other"))


@pytest.mark.parametrize("method", METHODS)
def test_empty_request_is_an_invalid_argument(trainer_stub: TrainerServiceStub, method: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        call(trainer_stub, SERVICE, method, type(request_for(method, "-"))())
    assert caught.value.violations[0].field
