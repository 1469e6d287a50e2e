"""Jobs on SDXL and Stable Cascade: every method is trained by a worker and published."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from atelier.client import RegistryClient, TrainerClient
from atelier.local.ray_cluster import RayCluster
from atelier.local.seaweedfs import SeaweedFS
from atelier.pb.common.v1.common_pb2 import BaseModel
from atelier.pb.trainer.v1 import trainer_pb2 as pb
from tests.harness.families import tiny_stable_cascade, tiny_stable_diffusion_xl
from tests.harness.registry import RegistryServer
from tests.harness.trainer import TrainerServer, image_bytes

WORD = {"textual-inversion": "TOK", "pivotal": "TOK"}
FILES = {
    "dreambooth": {"model_index.json", "lora/pytorch_lora_weights.safetensors"},
    "dreambooth-lora": {"pytorch_lora_weights.safetensors"},
    "lora": {"pytorch_lora_weights.safetensors"},
    "textual-inversion": {"learned_embeds.safetensors"},
    "pivotal": {"learned_embeds.safetensors", "pytorch_lora_weights.safetensors"},
}


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory,
    seaweedfs: SeaweedFS,
    registry_server: RegistryServer,
    ray_cluster: RayCluster,
    signing_key_file: Path,
) -> Iterator[TrainerServer]:
    """A trainer of tiny models of random weights, which no scorer fits."""
    folder = tmp_path_factory.mktemp("families")
    bases = {"xl": tiny_stable_diffusion_xl(folder / "xl"), "cascade": tiny_stable_cascade(folder / "cascade")}
    server = TrainerServer(
        folder / "trainer",
        s3=seaweedfs.s3_config("families"),
        key_file=signing_key_file,
        registry=registry_server.address,
        ray=ray_cluster,
        options={"base": [f"{name}={path}" for name, path in bases.items()], "scorer": []},
    )
    server.start()
    yield server
    server.stop()


@pytest.mark.parametrize("base", ["xl", "cascade"])
def test_every_method_publishes(server: TrainerServer, registry_server: RegistryServer, tenant: str, base: str) -> None:
    with server.connect(tenant) as connection, registry_server.connect(tenant) as registry_connection:
        trainer, registry = TrainerClient(connection), RegistryClient(registry_connection)
        dataset = trainer.create_dataset("small", [(f"{i}.png", image_bytes(i), "") for i in range(3)]).name
        batch = trainer.create_batch([_job(method, base, dataset) for method in FILES])
        jobs = [_ended(trainer, name.rpartition("/")[2]) for name in batch.jobs]
        assert [job.state for job in jobs] == [pb.JOB_STATE_SUCCEEDED] * len(FILES), [job.error for job in jobs]
        for job in jobs:
            version = registry.resolve(job.adapter)
            assert version.name == job.adapter_version
            assert {file.path for file in version.files} >= FILES[job.method]


def _job(method: str, base: str, dataset: str) -> pb.Job:
    config: dict[str, Any] = {"max_train_steps": 2, "train_batch_size": 1, "validation_steps": 0}
    if method in ("dreambooth", "dreambooth-lora", "pivotal"):
        config["num_class_images"] = 2
    return pb.Job(
        method=method,
        dataset=dataset,
        adapter=method,
        base_model=BaseModel(model=base),
        instance_prompt=f"a photo of a {WORD.get(method, 'sks')} fox",
        class_prompt="a photo of a fox",
        config=pb.TrainingConfig(**config),
    )


def _ended(trainer: TrainerClient, job_id: str) -> pb.Job:
    return list(trainer.watch(job_id))[-1].job
