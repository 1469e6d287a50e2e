"""Jobs as callers see them: checked before they are accepted, listed, cancelled."""

from __future__ import annotations

import io
import math
import uuid
from typing import Any

import pytest
from PIL import Image

from atelier.client import TrainerClient
from atelier.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    PermissionDeniedError,
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
THREE_CAPTIONS = ["a photo of TOK", "TOK, in snow", "a TOK"]
BAD_TOKENS: dict[str, tuple[dict[str, Any], str]] = {
    "of a method that has none": ({"method": "lora", "placeholder_token": "TOK"}, "job.placeholder_token"),
    "two words": ({"placeholder_token": "my fox"}, "job.placeholder_token"),
    "with brackets": ({"placeholder_token": "<fox>"}, "job.placeholder_token"),
    "of 33 characters": ({"placeholder_token": "x" * 33}, "job.placeholder_token"),
    "in no prompt": ({"instance_prompt": "a photo of a fox"}, "job.instance_prompt"),
    "a part of a word": ({"instance_prompt": "a photo of TOKs"}, "job.instance_prompt"),
}
BAD_CONCEPTS: dict[str, tuple[dict[str, Any], str]] = {
    "malformed dataset": ({"dataset": "cat"}, "dataset"),
    "no prompt": ({"instance_prompt": ""}, "instance_prompt"),
    "prompt of 100 kB": ({"instance_prompt": "x" * 100_000}, "instance_prompt"),
    "class prompt of 100 kB": ({"class_prompt": "x" * 100_000}, "class_prompt"),
    "negative repeats": ({"repeats": -1}, "repeats"),
    "101 repeats": ({"repeats": 101}, "repeats"),
    "no token": ({"placeholder_token": ""}, "placeholder_token"),
    "the first's token": ({"placeholder_token": "FOX"}, "placeholder_token"),
    "a token with the first's in it": ({"placeholder_token": "FOX-2"}, "placeholder_token"),
    "token in no prompt": ({"instance_prompt": "a photo of FOX"}, "instance_prompt"),
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


def words_job(dataset: str, **changes: Any) -> pb.Job:
    """A job of a method that learns embeddings; it is only checked here."""
    fields = {"method": "textual-inversion", "adapter": "fox", "instance_prompt": "a photo of TOK", **changes}
    return pb.Job(dataset=dataset, **fields)


def two_words_job(dataset: str, changes: dict[str, Any] | None = None) -> pb.Job:
    """One with a further concept; `changes` are its."""
    concept = {"dataset": dataset, "instance_prompt": "a CAT", "placeholder_token": "CAT", **(changes or {})}
    own = {"instance_prompt": "a photo of FOX", "placeholder_token": "FOX"}
    return words_job(dataset, concepts=[pb.Concept(**concept)], **own)


@pytest.mark.parametrize("case", BAD_TOKENS)
def test_a_bad_placeholder_token_is_refused_by_its_field(trainer: TrainerClient, dataset: str, case: str) -> None:
    changes, field = BAD_TOKENS[case]
    with pytest.raises(InvalidArgumentError) as caught:
        trainer.create_job(words_job(dataset, **changes), validate_only=True)
    assert caught.value.violations[0].field == field


@pytest.mark.parametrize("method", ["textual-inversion", "pivotal"])
def test_tok_is_the_placeholder_token_unless_another_is_given(
    trainer: TrainerClient, dataset: str, method: str
) -> None:
    checked = trainer.create_job(words_job(dataset, method=method), validate_only=True)
    assert checked.placeholder_token == "TOK"
    own = words_job(dataset, method=method, placeholder_token="my-fox", instance_prompt="a my-fox, red")
    assert trainer.create_job(own, validate_only=True).placeholder_token == "my-fox"


def test_captions_with_the_placeholder_token_need_it_in_no_prompt(trainer: TrainerClient) -> None:
    images = [(f"{index}.png", image_bytes(index), caption) for index, caption in enumerate(THREE_CAPTIONS)]
    captioned = trainer.create_dataset("captioned", images)
    job = words_job(captioned.name, instance_prompt="")
    assert trainer.create_job(job, validate_only=True).placeholder_token == "TOK"
    job.placeholder_token = "FOX"
    with pytest.raises(InvalidArgumentError) as caught:
        trainer.create_job(job, validate_only=True)
    assert caught.value.reason == "PLACEHOLDER_TOKEN_MISSING"


@pytest.mark.parametrize("case", BAD_CONCEPTS)
def test_a_bad_concept_is_refused_by_its_field(trainer: TrainerClient, dataset: str, case: str) -> None:
    changes, field = BAD_CONCEPTS[case]
    with pytest.raises(InvalidArgumentError) as caught:
        trainer.create_job(two_words_job(dataset, changes), validate_only=True)
    assert caught.value.violations[0].field == f"job.concepts[0].{field}"


def test_concepts_come_back_as_they_were_sent(trainer: TrainerClient, dataset: str) -> None:
    tenant = dataset.split("/")[1]
    cats = trainer.create_dataset("cats", [("cat.png", image_bytes(7), "")]).name
    job = quick_job(dataset, max_train_steps=3)
    job.concepts.add(dataset=cats, instance_prompt="a photo of a zwx cat", class_prompt="a cat", repeats=3)
    job.concepts.add(dataset="tenants/-/datasets/small", instance_prompt="a fox again")
    created = trainer.create_job(job, job_id="concepts")
    trainer.cancel("concepts")
    assert list(created.concepts) == [
        pb.Concept(dataset=cats, instance_prompt="a photo of a zwx cat", class_prompt="a cat", repeats=3),
        pb.Concept(dataset=f"tenants/{tenant}/datasets/small", instance_prompt="a fox again", repeats=1),
    ]
    assert trainer.job("concepts").concepts == created.concepts
    checked = trainer.create_job(two_words_job(dataset), validate_only=True)
    assert [checked.placeholder_token, checked.concepts[0].placeholder_token] == ["FOX", "CAT"]


def test_more_than_15_further_concepts_are_refused(trainer: TrainerClient, dataset: str) -> None:
    job = quick_job(dataset)
    job.concepts.extend([pb.Concept(dataset=dataset, instance_prompt="a fox")] * 15)
    trainer.create_job(job, validate_only=True)
    job.concepts.add(dataset=dataset, instance_prompt="a fox")
    with pytest.raises(InvalidArgumentError) as caught:
        trainer.create_job(job, validate_only=True)
    assert caught.value.violations[0].field == "job.concepts"


def test_a_concept_s_dataset_must_be_there_and_the_caller_s(trainer: TrainerClient, dataset: str) -> None:
    job = quick_job(dataset)
    concept = job.concepts.add(dataset="tenants/-/datasets/nothing", instance_prompt="a cat")
    with pytest.raises(NotFoundError, match=r"job\.concepts\[0\]\.dataset") as caught:
        trainer.create_job(job)
    assert caught.value.reason == "DATASET_NOT_FOUND"
    concept.dataset = "tenants/somebody-else/datasets/small"
    with pytest.raises(PermissionDeniedError, match=r"job\.concepts\[0\]\.dataset"):
        trainer.create_job(job)
    with pytest.raises(PermissionDeniedError, match=r"jobs\[0\]\.concepts\[0\]\.dataset"):
        trainer.create_batch([job])


def test_warnings_about_images_come_with_the_job(trainer: TrainerClient) -> None:
    contents = [image_bytes(0), image_bytes(0), image_bytes(1, size=(64, 200))]
    images = [(f"{index}.png", content, "") for index, content in enumerate(contents)]
    mask = io.BytesIO()
    Image.new("L", (64, 64)).save(mask, "PNG")
    spoilt = trainer.create_dataset("spoilt", images, masks={"0.png": ("m.png", mask.getvalue())}).name
    created = trainer.create_job(quick_job(spoilt, resolution=128), job_id="warned")
    trainer.cancel("warned")
    assert list(created.warnings) == [
        "exact duplicates: 1.png (of 0.png)",
        "enlarged to the resolution of 128: 0.png (2 times), 1.png (2 times), 2.png (2 times)",
        "cut to a square, which aspect_ratio_buckets would avoid: 2.png (68% lost)",
        "masks that are black all over, so nothing of the image counts: 0.png",
    ]
    assert trainer.job("warned").warnings == created.warnings


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
