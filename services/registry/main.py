"""The registry's process: reads its configuration, migrates its schema, serves until SIGTERM.

Every option can come from the environment: `--database-url` from ATELIER_REGISTRY_DATABASE_URL, and so on.
"""

from __future__ import annotations

import asyncio
from datetime import timedelta
from pathlib import Path
from typing import Any

import click
import grpc

from atelier.pb.registry.v1 import (
    base_models_pb2,
    base_models_pb2_grpc,
    maintenance_pb2,
    maintenance_pb2_grpc,
    registry_pb2,
    registry_pb2_grpc,
    tokens_pb2,
    tokens_pb2_grpc,
)
from atelier.rpc.logs import configure_logging
from atelier.rpc.options import authenticator, s3_config, s3_options, server_config, server_options, spool_option
from atelier.rpc.server import Server, serve
from atelier.signing import Signer
from atelier.storage.blobs import BlobStore
from atelier.storage.database import Database
from atelier.storage.presigning import Presigner
from services.registry import tokens
from services.registry.base_models_servicer import BaseModelServicer
from services.registry.commit import Committer
from services.registry.deletion import DELETE_GRACE
from services.registry.downloads import Downloader
from services.registry.exports import Exporter
from services.registry.garbage import Collector, GarbageConfig
from services.registry.imports import ImportConfig, Importer
from services.registry.janitor import Janitor, JanitorConfig
from services.registry.maintenance_servicer import MaintenanceServicer
from services.registry.publish import MAX_VERSION_BYTES, PublishConfig, Publisher
from services.registry.quota import QuotaConfig, Quotas
from services.registry.scrub import Scrubber
from services.registry.servicer import RegistryServicer
from services.registry.storing import IDLE_SECONDS, Storer
from services.registry.token_servicer import TokenServicer
from services.registry.upload_completion import Completer
from services.registry.uploads import LIFETIME_SECONDS, UploadConfig, Uploader

MIGRATIONS = Path(__file__).parent / "migrations"
SERVICES = (
    registry_pb2.DESCRIPTOR.services_by_name["RegistryService"],
    maintenance_pb2.DESCRIPTOR.services_by_name["MaintenanceService"],
    base_models_pb2.DESCRIPTOR.services_by_name["BaseModelService"],
    tokens_pb2.DESCRIPTOR.services_by_name["TokenService"],
)


@click.command(context_settings={"auto_envvar_prefix": "ATELIER_REGISTRY"})
@server_options
@s3_options
@click.option("--s3-public-endpoint", default="", metavar="URL", help="Where clients reach the S3 server.")
@spool_option
@click.option(
    "--database-url", required=True, help="SQLite or PostgreSQL; has a password: better given by environment variable."
)
@click.option("--manifest-key-file", type=click.Path(path_type=Path), help="Ed25519 key (PEM) that signs versions.")
@click.option("--max-version-bytes", type=int, default=MAX_VERSION_BYTES, show_default=True, help="Largest version.")
@click.option("--max-tenant-bytes", type=int, default=0, help="A tenant's contents; 0 means no limit.")
@click.option("--max-tenant-versions", type=int, default=0, help="A tenant's versions; 0 means no limit.")
@click.option(
    "--upload-lifetime-seconds", type=float, default=LIFETIME_SECONDS, show_default=True, help="Of an upload."
)
@click.option(
    "--upload-idle-seconds", type=float, default=IDLE_SECONDS, show_default=True, help="Longest pause of a sender."
)
@click.option("--delete-grace-days", type=float, default=DELETE_GRACE.days, show_default=True, help="Until a purge.")
@click.option("--gc-grace-seconds", type=float, default=24 * 3600.0, show_default=True, help="Age of garbage.")
@click.option("--janitor-seconds", type=float, default=300.0, show_default=True, help="Between passes; 0 means never.")
def main(**values: Any) -> None:
    """Serves adapters, versions, aliases and base models over gRPC until SIGTERM."""
    configure_logging("registry")
    asyncio.run(_serve(values))


async def _serve(values: dict[str, Any]) -> None:
    listening = server_config(values)
    if values["gc_grace_seconds"] < 2 * listening.max_unary_seconds:
        raise click.UsageError(
            "--gc-grace-seconds must be twice --max-unary-seconds or more: what a call stores is no garbage"
        )
    database = Database(values["database_url"], MIGRATIONS)
    await asyncio.to_thread(database.migrate)
    blobs = BlobStore(s3_config(values))
    quotas = Quotas(
        QuotaConfig(max_tenant_bytes=values["max_tenant_bytes"], max_tenant_versions=values["max_tenant_versions"])
    )
    delete_grace = timedelta(days=values["delete_grace_days"])
    collector = Collector(GarbageConfig(grace_seconds=values["gc_grace_seconds"]), database, blobs)
    janitor_config = JanitorConfig(interval_seconds=values["janitor_seconds"], delete_grace=delete_grace)
    janitor = Janitor(janitor_config, database, collector)
    registry = _registry_servicer(values, database, blobs, quotas, delete_grace)
    maintenance = MaintenanceServicer(database, collector, Scrubber(database, blobs), quotas)

    def register(server: grpc.aio.Server) -> None:
        registry_pb2_grpc.add_RegistryServiceServicer_to_server(registry, server)
        maintenance_pb2_grpc.add_MaintenanceServiceServicer_to_server(maintenance, server)
        base_models_pb2_grpc.add_BaseModelServiceServicer_to_server(BaseModelServicer(database), server)
        tokens_pb2_grpc.add_TokenServiceServicer_to_server(TokenServicer(database), server)

    async def warm_up() -> None:
        janitor.start()

    async def shut_down() -> None:
        await asyncio.to_thread(janitor.stop)
        database.close()

    server = Server(listening, authenticator(values, tokens.verifier(database)), SERVICES, register)
    await serve(server, warm_up=warm_up, shut_down=shut_down)


def _registry_servicer(
    values: dict[str, Any], database: Database, blobs: BlobStore, quotas: Quotas, delete_grace: timedelta
) -> RegistryServicer:
    max_version_bytes = values["max_version_bytes"]
    idle_seconds = values["upload_idle_seconds"]
    storer = Storer(blobs, idle_seconds=idle_seconds)
    key_file = values["manifest_key_file"]
    signer = Signer.from_file(key_file) if key_file else Signer()
    max_age = timedelta(seconds=values["gc_grace_seconds"] / 2)
    committer = Committer(database, storer, quotas, signer, max_age=max_age)
    values["spool_folder"].mkdir(parents=True, exist_ok=True)
    publishing = PublishConfig(max_version_bytes=max_version_bytes)
    importing = ImportConfig(spool_folder=values["spool_folder"])
    uploading = UploadConfig(
        max_version_bytes=max_version_bytes,
        lifetime_seconds=values["upload_lifetime_seconds"],
        idle_seconds=idle_seconds,
    )
    presigner = Presigner(s3_config(values), values["s3_public_endpoint"])
    downloader = Downloader(database, blobs, presigner)
    completer = Completer(database, blobs, storer, committer)
    return RegistryServicer(
        database,
        Publisher(publishing, storer, committer),
        Importer(importing, storer, committer),
        Uploader(uploading, database, blobs, quotas, presigner, completer),
        downloader,
        Exporter(values["spool_folder"], database, downloader),
        quotas,
        delete_grace=delete_grace,
    )
