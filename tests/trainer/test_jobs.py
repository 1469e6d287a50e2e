"""Jobs as callers see them: checked before they are accepted, listed, cancelled."""

from __future__ import annotations

import math
import uuid
from typing import Any

import pytest

from atelier.client import TrainerClient
from atelier.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
)
from atelier.pb.common.v1.common_pb2 import BaseModel
from atelier.pb.trainer.v1 import trainer_pb2 as pb
from atelier.pb.trainer.v1.trainer_pb2_grpc import TrainerServiceStub
from atelier.rpc.status import translated_errors
from tests.harness.trainer import image_bytes, quick_job

BAD_JOBS: dict[str, tuple[dict[str, Any], str]] = {
    "unknown method": ({"method": "magic"}, "job.method"),
    "no method": ({"method": ""}, "job.method"),
    "unknown base": ({"base_model": BaseModel(model="sd-9")}, "job.base_model.model"),
    "adapter id": ({"adapter": "My Fox"}, "job.adapter"),
    "no adapter": ({"adapter": ""}, "job.adapter"),
    "malformed dataset": ({"dataset": "fox"}, "job.dataset"),
    "empty prompt": ({"instance_prompt": "  "}, "job.instance_prompt"),
    "prompt of 100 kB": ({"instance_prompt": "x" * 100_000}, "job.instance_prompt"),
    "class prompt of 100 kB": ({"class_prompt": "x" * 100_000}, "job.class_prompt"),
    "empty validation prompt": ({"validation_prompts": ["a", ""]}, "job.validation_prompts[1]"),
    "17 validation prompts": ({"validation_prompts": ["a"] * 17}, "job.validation_prompts"),
}
BAD_CONFIGS: dict[str, Any] = {
    "max_train_steps": 0,
    "train_batch_size": 65,
    "learning_rate": math.nan,
    "lr_scheduler": "polynomial",
    "rank": 0,
    "lora_alpha": math.inf,
    "lora_layers": "some",
    "prior_loss_weight": -1.0,
    "resolution": 100,
    "seed": -1,
    "max_grad_norm": 0.0,
}


def test_an_accepted_job_shows_every_setting(trainer: TrainerClient, dataset: str) -> None:
    job = trainer.create_job(quick_job(dataset, seed=7))
    assert (job.config.seed, job.config.rank) == (7, 2)
    assert all(job.config.HasField(field.name) for field in pb.TrainingConfig.DESCRIPTOR.fields)
    assert job.base_model.model == "emoji-sd"
    assert job.base_model.digest.startswith("sha256:")
    assert trainer.cancel(job.name.split("/")[-1]).state in (pb.JOB_STATE_CANCELLED, pb.JOB_STATE_CANCELLING)


@pytest.mark.parametrize("case", BAD_JOBS)
def test_a_bad_job_is_refused_by_its_field(trainer: TrainerClient, dataset: str, case: str) -> None:
    changes, field = BAD_JOBS[case]
    job = quick_job(dataset)
    for name in changes:
        job.ClearField(name)
    job.MergeFrom(pb.Job(**changes))
    with pytest.raises(InvalidArgumentError) as caught:
        trainer.create_job(job)
    assert caught.value.violations[0].field == field
    assert list(trainer.jobs()) == []


@pytest.mark.parametrize("field", BAD_CONFIGS)
def test_a_bad_hyperparameter_is_refused_by_its_field(trainer: TrainerClient, dataset: str, field: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        trainer.create_job(quick_job(dataset, **{field: BAD_CONFIGS[field]}))
    assert caught.value.violations[0].field == f"job.config.{field}"
    assert "allowed" in caught.value.violations[0].description


def test_captions_for_all_images_need_no_instance_prompt(trainer: TrainerClient) -> None:
    captioned = trainer.create_dataset("captioned", [("a.png", image_bytes(), "a photo of a sks fox")])
    job = quick_job(captioned.name)
    job.ClearField("instance_prompt")
    assert trainer.create_job(job, validate_only=True).instance_prompt == ""


def test_steps_of_100000_are_refused(trainer: TrainerClient, dataset: str) -> None:
    with pytest.raises(InvalidArgumentError, match="max_train_steps"):
        trainer.create_job(quick_job(dataset, max_train_steps=100_000))


def test_an_unknown_dataset_is_not_found(trainer: TrainerClient) -> None:
    with pytest.raises(NotFoundError) as caught:
        trainer.create_job(quick_job("tenants/-/datasets/nothing"))
    assert caught.value.reason == "DATASET_NOT_FOUND"


def test_validate_only_changes_nothing(trainer: TrainerClient, dataset: str) -> None:
    assert trainer.create_job(quick_job(dataset), validate_only=True).config.rank == 2
    assert list(trainer.jobs()) == []
    with pytest.raises(InvalidArgumentError):
        trainer.create_job(quick_job(dataset, rank=0), validate_only=True)


def test_ids_are_unique_and_request_ids_idempotent(
    trainer: TrainerClient, trainer_stub: TrainerServiceStub, dataset: str
) -> None:
    request = pb.CreateJobRequest(
        parent="tenants/-", job_id="mine", job=quick_job(dataset), request_id=str(uuid.uuid4())
    )
    first = trainer_stub.CreateJob(request)
    trainer.cancel("mine")
    assert trainer_stub.CreateJob(request).name == first.name
    with pytest.raises(AlreadyExistsError):
        trainer.create_job(quick_job(dataset), job_id="mine")
    with pytest.raises(InvalidArgumentError, match="request_id"), translated_errors():
        trainer_stub.CreateJob(pb.CreateJobRequest(parent="tenants/-", job=quick_job(dataset), request_id="1"))


def test_a_job_cannot_be_cancelled_twice(trainer: TrainerClient, dataset: str) -> None:
    trainer.create_job(quick_job(dataset), job_id="twice")
    trainer.cancel("twice")
    with pytest.raises(FailedPreconditionError) as caught:
        trainer.cancel("twice")
    assert caught.value.reason == "JOB_NOT_CANCELLABLE"
    assert caught.value.metadata["state"] in ("CANCELLED", "CANCELLING")


def test_jobs_are_listed_newest_first(trainer: TrainerClient, dataset: str) -> None:
    for job_id in ("first", "second", "third"):
        trainer.create_job(quick_job(dataset), job_id=job_id)
        trainer.cancel(job_id)
    assert [job.name.split("/")[-1] for job in trainer.jobs()] == ["third", "second", "first"]


def test_a_batch_is_created_whole_or_not_at_all(trainer: TrainerClient, dataset: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        trainer.create_batch([quick_job(dataset), quick_job(dataset, rank=0)], batch_id="broken")
    assert caught.value.violations[0].field == "jobs[1].config.rank"
    with pytest.raises(InvalidArgumentError) as caught:
        trainer.create_batch([quick_job(dataset), pb.Job(method="magic", dataset=dataset, adapter="fox")])
    assert caught.value.violations[0].field == "jobs[1].method"
    assert list(trainer.jobs()) == []
    batch = trainer.create_batch([quick_job(dataset), quick_job(dataset, adapter="other")], batch_id="whole")
    assert [job.batch for job in trainer.jobs()] == [batch.name] * 2
    for job in batch.jobs:
        trainer.cancel(job.split("/")[-1])
    assert trainer.batch("whole").jobs == batch.jobs
    counts = trainer.batch("whole").job_counts
    assert sum(counts.values()) == 2
    assert set(counts) <= {"CANCELLED", "CANCELLING"}
