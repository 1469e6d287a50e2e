"""Every method as a job: created over gRPC, trained on Ray, published; what is published loads in plain diffusers."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

from atelier.client import RegistryClient, TrainerClient
from atelier.pb.trainer.v1 import trainer_pb2 as pb
from tests.harness.registry import RegistryServer
from tests.harness.trainer import TrainerServer, image_bytes

MODEL = Path(__file__).parents[2] / "models" / "emoji-sd"
QUICK: dict[str, Any] = {"max_train_steps": 4, "train_batch_size": 1, "validation_steps": 0, "resolution": 64}


def run_job(client: TrainerClient, **fields: Any) -> pb.Job:
    job = client.create_job(pb.Job(**fields))
    ended = list(client.watch(job.name.rpartition("/")[2]))[-1].job
    assert ended.state == pb.JOB_STATE_SUCCEEDED, ended.error
    return ended


def pull(registry_server: RegistryServer, tenant: str, job: pb.Job, folder: Path) -> set[str]:
    """Downloads what a job published; the paths of its files."""
    with registry_server.connect(tenant) as connection:
        registry = RegistryClient(connection)
        version = registry.resolve(job.adapter)
        assert version.name == job.adapter_version
        return {path.relative_to(folder).as_posix() for path in registry.pull(version, folder)}


@pytest.fixture
def dataset(trainer: TrainerClient) -> str:
    return trainer.create_dataset("small", [(f"{i}.png", image_bytes(i), "") for i in range(3)]).name


def test_embeddings_are_published_for_each_placeholder(
    trainer: TrainerClient, registry_server: RegistryServer, tenant: str, dataset: str, tmp_path: Path
) -> None:
    other = trainer.create_dataset("other", [(f"{i}.png", image_bytes(9 + i), "a photo of THAT") for i in range(3)])
    job = run_job(
        trainer,
        method="textual-inversion",
        dataset=dataset,
        adapter="words",
        instance_prompt="a photo of THIS",
        placeholder_token="THIS",
        concepts=[pb.Concept(dataset=other.name, placeholder_token="THAT", repeats=2)],
        config=pb.TrainingConfig(**QUICK, num_vectors=3),
    )
    paths = pull(registry_server, tenant, job, tmp_path)
    assert "learned_embeds.safetensors" in paths
    assert "pytorch_lora_weights.safetensors" not in paths
    vectors = safetensors.torch.load_file(tmp_path / "learned_embeds.safetensors")["clip_l"]
    assert vectors.shape == (6, 256)
    pipeline = StableDiffusionPipeline.from_pretrained(MODEL, dtype=torch.float32)
    pipeline.load_textual_inversion(list(vectors), token=[f"<s{i}>" for i in range(6)])
    assert torch.equal(pipeline.text_encoder.get_input_embeddings().weight[-6:], vectors)


def test_pivotal_tuning_publishes_embeddings_and_updates(
    trainer: TrainerClient, registry_server: RegistryServer, tenant: str, dataset: str, tmp_path: Path
) -> None:
    job = run_job(
        trainer,
        method="pivotal",
        dataset=dataset,
        adapter="pivot",
        instance_prompt="a photo of TOK",
        config=pb.TrainingConfig(**QUICK, rank=2, lora_layers="attention"),
    )
    assert job.placeholder_token == "TOK"
    paths = pull(registry_server, tenant, job, tmp_path)
    assert {"learned_embeds.safetensors", "pytorch_lora_weights.safetensors", "samples/grid.png"} <= paths


def test_a_whole_model_is_published(
    trainer: TrainerClient, registry_server: RegistryServer, tenant: str, dataset: str, tmp_path: Path
) -> None:
    job = run_job(
        trainer,
        method="dreambooth",
        dataset=dataset,
        adapter="whole",
        instance_prompt="a photo of a sks fox",
        config=pb.TrainingConfig(**{**QUICK, "max_train_steps": 2}),
    )
    paths = pull(registry_server, tenant, job, tmp_path)
    assert {
        "model_index.json",
        "unet/diffusion_pytorch_model.safetensors",
        "lora/pytorch_lora_weights.safetensors",
    } <= paths
    pipeline = StableDiffusionPipeline.from_pretrained(tmp_path, dtype=torch.float32)
    base = StableDiffusionPipeline.from_pretrained(MODEL, dtype=torch.float32)
    tuned, plain = (each.unet.conv_in.weight for each in (pipeline, base))
    assert not torch.equal(tuned, plain)
    assert torch.equal(pipeline.vae.decoder.conv_in.weight, base.vae.decoder.conv_in.weight)


def test_masks_reach_the_worker(trainer: TrainerClient, registry_server: RegistryServer, tenant: str) -> None:
    mask = io.BytesIO()
    Image.linear_gradient("L").resize((64, 64)).save(mask, format="PNG")
    trainer.create_dataset(
        "masked", [(f"{i}.png", image_bytes(i), "") for i in range(3)], masks={"1.png": ("m.png", mask.getvalue())}
    )
    job = run_job(
        trainer,
        method="lora",
        dataset="tenants/-/datasets/masked",
        adapter="masked",
        instance_prompt="noise",
        config=pb.TrainingConfig(**QUICK, rank=2, lora_layers="attention", aspect_ratio_buckets=True),
    )
    assert job.progress.step == 4


def test_a_rate_that_is_too_high_ends_with_a_typed_error(trainer: TrainerClient, dataset: str) -> None:
    config = pb.TrainingConfig(**{**QUICK, "max_train_steps": 50}, learning_rate=10, max_grad_norm=1000)
    job = trainer.create_job(
        pb.Job(method="dreambooth", dataset=dataset, adapter="wild", instance_prompt="x", config=config)
    )
    ended = list(trainer.watch(job.name.rpartition("/")[2]))[-1].job
    assert ended.state == pb.JOB_STATE_FAILED
    assert "training diverged at step" in ended.error.message
    assert not ended.adapter_version


def test_a_number_type_that_the_worker_has_not_got_is_an_error(
    trainer: TrainerClient, trainer_server: TrainerServer, dataset: str
) -> None:
    job = trainer.create_job(
        pb.Job(
            method="lora",
            dataset=dataset,
            adapter="half",
            instance_prompt="x",
            config=pb.TrainingConfig(**QUICK, precision="fp16"),
        )
    )
    ended = list(trainer.watch(job.name.rpartition("/")[2]))[-1].job
    assert ended.state == pb.JOB_STATE_FAILED
    assert "fp16 needs a GPU" in ended.error.message
