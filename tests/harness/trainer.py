"""The trainer as a process, over any S3 server, registry and Ray cluster."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from atelier.local.ray_cluster import RayCluster
from atelier.local.stack import MODELS
from atelier.pb.trainer.v1 import trainer_pb2 as pb
from atelier.rpc.identity import TokenAuthority
from atelier.storage.blobs import S3Config
from tests.harness.service import ServiceProcess

EXAMPLES = MODELS.parent / "examples"


class TrainerServer(ServiceProcess):
    """A trainer whose database and log are in `folder`.

    Args:
        folder: the same folder again brings the same trainer back.
        registry: `host:port` of the registry.
    """

    def __init__(
        self,
        folder: Path,
        *,
        s3: S3Config,
        key_file: Path,
        registry: str,
        ray: RayCluster,
        options: Mapping[str, object] | None = None,
    ) -> None:
        folder.mkdir(exist_ok=True)
        every = {
            "database-url": f"sqlite:///{folder / 'trainer.db'}",
            "s3-endpoint": s3.endpoint,
            "s3-bucket": s3.bucket,
            "s3-access-key": s3.access_key,
            "signing-key-file": key_file,
            "registry": registry,
            "ray-address": ray.address,
            "base": f"emoji-sd={MODELS / 'emoji-sd'}",
            "scorer": f"emoji-sd={MODELS / 'emoji-clip'}",
            "spool-folder": folder / "spool",
            "grace-seconds": 2,
            **(options or {}),
        }
        self.database_url = str(every["database-url"])
        env = {"ATELIER_TRAINER_S3_SECRET_KEY": s3.secret_key, **ray.env}
        super().__init__("services.trainer", folder, TokenAuthority.from_file(key_file), every, env)


def image_bytes(seed: int = 0, *, size: tuple[int, int] = (64, 64), kind: str = "PNG") -> bytes:
    """An image file of random pixels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format=kind)
    return buffer.getvalue()


def quick_job(dataset: str, *, adapter: str = "fox", **config: Any) -> pb.Job:
    """A real job that takes seconds: few steps of batch 1 on the attention layers, without prior preservation."""
    quick: dict[str, Any] = {
        "max_train_steps": 4,
        "train_batch_size": 1,
        "rank": 2,
        "lora_layers": "attention",
        "checkpointing_steps": 2,
        "validation_steps": 0,
    }
    return pb.Job(
        method="dreambooth-lora",
        dataset=dataset,
        adapter=adapter,
        instance_prompt="a photo of a sks fox",
        config=pb.TrainingConfig(**{**quick, **config}),
    )
