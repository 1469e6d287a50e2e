"""The registry's process: reads its configuration, migrates its schema, serves until SIGTERM.

Every option can come from the environment: `--database-url` from ATELIER_REGISTRY_DATABASE_URL, and so on.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import click
import grpc

from atelier.pb.registry.v1 import registry_pb2, registry_pb2_grpc
from atelier.rpc.identity import TokenAuthority
from atelier.rpc.logs import configure_logging
from atelier.rpc.options import authority, s3_config, s3_options, server_config, server_options, spool_option
from atelier.rpc.server import Server, ServerConfig, serve
from atelier.storage.blobs import BlobStore
from atelier.storage.database import Database
from services.registry.publish import MAX_VERSION_BYTES, PublishConfig, Publisher
from services.registry.servicer import RegistryServicer

MIGRATIONS = Path(__file__).parent / "migrations"


@click.command(context_settings={"auto_envvar_prefix": "ATELIER_REGISTRY"})
@server_options
@s3_options
@click.option("--database-url", required=True, help="SQLAlchemy URL, such as sqlite:////data/registry.db.")
@spool_option
@click.option("--max-version-bytes", type=int, default=MAX_VERSION_BYTES, show_default=True, help="Largest version.")
def main(database_url: str, spool_folder: Path, max_version_bytes: int, **values: Any) -> None:
    """Serves adapters, versions and aliases over gRPC."""
    configure_logging("registry")
    publishing = PublishConfig(spool_folder=spool_folder, max_version_bytes=max_version_bytes)
    database = Database(database_url, MIGRATIONS)
    blobs = BlobStore(s3_config(values))
    asyncio.run(run(server_config(values), authority(values), publishing, database, blobs))


async def run(
    listening: ServerConfig, tokens: TokenAuthority, publishing: PublishConfig, database: Database, blobs: BlobStore
) -> None:
    """Prepares the database, then serves until SIGTERM or SIGINT."""
    publishing.spool_folder.mkdir(parents=True, exist_ok=True)
    database.migrate()
    servicer = RegistryServicer(database, blobs, Publisher(publishing, database, blobs))

    def register(server: grpc.aio.Server) -> None:
        registry_pb2_grpc.add_RegistryServiceServicer_to_server(servicer, server)

    await serve(Server(listening, tokens, registry_pb2.DESCRIPTOR.services_by_name["RegistryService"], register))
    database.close()
