"""Every RPC of the trainer: no credential, no answer; no scope, no answer; no tenant reaches another one's."""

from __future__ import annotations

import uuid

import pytest
from google.protobuf.descriptor import MethodDescriptor

from atelier.client import TrainerClient
from tests.harness import access
from tests.harness.calls import TRAINER, USUAL, methods
from tests.harness.trainer import TrainerServer, image_bytes, quick_job

METHODS = methods(TRAINER)
every_method = pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)


def test_every_registered_service_is_walked(trainer_server: TrainerServer) -> None:
    access.check_all_are_walked(trainer_server, METHODS)


@every_method
def test_call_without_a_credential_is_unauthenticated(trainer_server: TrainerServer, method: MethodDescriptor) -> None:
    access.check_credential_is_needed(trainer_server, method)


@pytest.fixture(scope="module")
def owner(trainer_server: TrainerServer) -> str:
    """A tenant that has what the requests are about. The walks change nothing of it."""
    tenant = f"t-{uuid.uuid4().hex[:12]}"
    with trainer_server.connect(tenant) as connection:
        trainer = TrainerClient(connection)
        dataset = trainer.create_dataset(USUAL.dataset, [("a.png", image_bytes(), "")]).name
        job = quick_job(dataset, max_train_steps=20_000)
        trainer.create_job(job, job_id=USUAL.job)
        trainer.create_batch([job], batch_id=USUAL.batch)
        for created in trainer.jobs():
            trainer.cancel(created.name.rsplit("/", 1)[1])
    return tenant


@every_method
def test_too_weak_a_credential_is_denied_before_anything_is_looked_at(
    trainer_server: TrainerServer, owner: str, method: MethodDescriptor
) -> None:
    access.check_scope_is_needed(trainer_server, method, owner, USUAL)


@every_method
def test_name_of_another_tenant_is_denied_whether_or_not_it_exists(
    trainer_server: TrainerServer, owner: str, method: MethodDescriptor
) -> None:
    access.check_tenants_are_apart(trainer_server, method, owner, USUAL)


@pytest.mark.parametrize("name", ["GetDataset", "GetJob", "GetBatch"])
def test_owner_finds_what_there_is(trainer_server: TrainerServer, owner: str, name: str) -> None:
    (method,) = (each for each in METHODS if each.name == name)
    access.check_owner_finds_what_there_is(trainer_server, method, owner, USUAL)


@every_method
def test_empty_request_is_an_invalid_argument(
    trainer_server: TrainerServer, tenant: str, method: MethodDescriptor
) -> None:
    access.check_empty_request_is_refused(trainer_server, method, tenant)
