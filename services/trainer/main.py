"""The trainer's process: keeps the jobs and hands them to Ray workers, where all training happens.

Every option can come from the environment: `--ray-address` from ATELIER_TRAINER_RAY_ADDRESS, and so on.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import click

from atelier.diffusion.digest import model_digest
from atelier.pb.trainer.v1 import trainer_pb2
from atelier.pb.trainer.v1.trainer_pb2_grpc import add_TrainerServiceServicer_to_server
from atelier.rpc.logs import configure_logging
from atelier.rpc.options import (
    authenticator,
    authority,
    base_option,
    bases,
    named_folders,
    registry_endpoint,
    registry_options,
    s3_config,
    s3_options,
    server_config,
    server_options,
    spool_option,
)
from atelier.rpc.server import Server, serve
from atelier.rpc.tokens import verified_by
from atelier.storage.blobs import BlobStore
from atelier.storage.database import Database
from services.trainer.batches import Batches
from services.trainer.datasets import Datasets
from services.trainer.job_files import JobFiles
from services.trainer.jobs import BaseChoice, Jobs
from services.trainer.queue import Queue
from services.trainer.scheduler import Scheduler, SchedulerConfig
from services.trainer.servicer import TrainerServicer
from services.trainer.sweeper import Sweeper
from services.trainer.watching import Watcher
from services.trainer.worker import WorkerConfig

MIGRATIONS = Path(__file__).parent / "migrations"


@click.command(context_settings={"auto_envvar_prefix": "ATELIER_TRAINER"})
@server_options
@s3_options
@spool_option
@base_option
@click.option("--database-url", required=True, help="SQLAlchemy URL of the trainer's database.")
@registry_options
@click.option("--scorer", multiple=True, metavar="NAME=PATH", help="A base model's CLIP scorer; none means no scores.")
@click.option("--dino", type=click.Path(exists=True, path_type=Path), help="A DINO model's folder, for more scores.")
@click.option("--ray-address", required=True, help="host:port of the Ray cluster.")
@click.option("--workers", type=click.IntRange(min=1), default=1, show_default=True, help="Jobs at a time.")
@click.option("--gpus-per-worker", type=float, help="0 trains on CPUs.  [default: 1 where the cluster has GPUs]")
@click.option("--torch-threads", type=click.IntRange(min=1), default=2, show_default=True, help="Of each worker.")
def main(**values: Any) -> None:
    """Serves the trainer until SIGTERM."""
    configure_logging("trainer")
    asyncio.run(_serve(values))


async def _serve(values: dict[str, Any]) -> None:
    database = Database(values["database_url"], MIGRATIONS)
    await asyncio.to_thread(database.migrate)
    s3, registry, own_tokens = s3_config(values), registry_endpoint(values), authority(values)
    blobs = BlobStore(s3)
    files = JobFiles(blobs)
    models = bases(values)
    jobs = Jobs(database, {name: BaseChoice(path=path, digest=model_digest(path)) for name, path in models.items()})
    values["spool_folder"].mkdir(parents=True, exist_ok=True)
    datasets = Datasets(database, blobs, values["spool_folder"])
    servicer = TrainerServicer(datasets, jobs, Batches(database, jobs), Watcher(database, files))
    worker = WorkerConfig(
        bases=models,
        scorers=named_folders(values["scorer"], "--scorer"),
        dino=values["dino"],
        s3=s3,
        registry=registry,
        torch_threads=values["torch_threads"],
    )
    config = SchedulerConfig(
        ray_address=values["ray_address"], num_workers=values["workers"], gpus_per_worker=values["gpus_per_worker"]
    )
    scheduler = Scheduler(config, worker, Queue(database), Sweeper(database, files), own_tokens)

    async def warm_up() -> None:
        scheduler.start()

    with verified_by(registry, own_tokens, "trainer") as random_tokens:
        server = Server(
            server_config(values),
            authenticator(values, random_tokens),
            [trainer_pb2.DESCRIPTOR.services_by_name["TrainerService"]],
            lambda target: add_TrainerServiceServicer_to_server(servicer, target),
        )
        await serve(server, warm_up=warm_up, shut_down=scheduler.stop)
