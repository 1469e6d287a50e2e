"""The inference service's process: reads its configuration, warms its base models, serves until SIGTERM.

Every option can come from the environment: `--registry` from ATELIER_INFERENCE_REGISTRY, and so on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import grpc
import torch

from atelier.client.registry import RegistryClient
from atelier.pb.inference.v1 import inference_pb2, inference_pb2_grpc
from atelier.rpc.logs import configure_logging
from atelier.rpc.options import (
    authenticator,
    authority,
    base_option,
    bases,
    registry_endpoint,
    registry_options,
    server_config,
    server_options,
)
from atelier.rpc.server import Server, serve
from atelier.rpc.tokens import verified_by
from atelier.signing import Policy, Verifier
from services.inference.adapters import AdapterCache, CacheConfig, open_registry
from services.inference.engine import EngineConfig
from services.inference.models import Model, load_models
from services.inference.servicer import InferenceServicer, ServiceConfig

_ENGINE, _SERVICE = EngineConfig(), ServiceConfig()
_RANK_HELP = (
    "Highest rank of an adapter. All slots together take num-slots x max-rank x (the in and out sizes of all layers) "
    "numbers: with the defaults 0.5 GB for emoji-sd in float32, 2.4 GB for Stable Diffusion 1.5 in bfloat16."
)


@click.command(context_settings={"auto_envvar_prefix": "ATELIER_INFERENCE"})
@server_options
@registry_options
@base_option
@click.option("--cache-dir", type=click.Path(path_type=Path), required=True, help="Adapters that were fetched.")
@click.option("--cache-max-bytes", type=int, default=10 * 2**30, show_default=True, help="Of all files in there.")
@click.option(
    "--num-slots",
    type=int,
    default=_ENGINE.num_slots,
    show_default=True,
    help="One more than adapters at the same time.",
)
@click.option("--max-rank", type=int, default=_ENGINE.max_rank, show_default=True, help=_RANK_HELP)
@click.option(
    "--max-batch-rows", type=int, default=_ENGINE.max_batch_rows, show_default=True, help="Rows of a denoising step."
)
@click.option(
    "--max-queued-requests", type=int, default=_SERVICE.max_queued_requests, show_default=True, help="More are refused."
)
@click.option(
    "--max-size", type=int, default=_SERVICE.max_size, show_default=True, help="Largest width and height in pixels."
)
@click.option(
    "--trusted-key-file",
    "trusted_key_files",
    type=click.Path(path_type=Path),
    multiple=True,
    help="Public key (PEM) of a registry that signs versions; may be repeated.",
)
@click.option(
    "--signature-policy",
    type=click.Choice(Policy, case_sensitive=False),
    help="On versions without a signature by a trusted key. Unset means warn when a key is trusted, else off.",
)
@click.option("--torch-threads", type=int, help="Threads of one operation on a CPU; unset means PyTorch's default.")
def main(
    cache_dir: Path,
    cache_max_bytes: int,
    num_slots: int,
    max_rank: int,
    max_batch_rows: int,
    max_queued_requests: int,
    max_size: int,
    trusted_key_files: tuple[Path, ...],
    signature_policy: Policy | None,
    torch_threads: int | None,
    **values: Any,
) -> None:
    """Generates images with any mix of adapters on warm base models, over gRPC."""
    configure_logging("inference")
    if torch_threads is not None:
        torch.set_num_threads(torch_threads)
    engine = EngineConfig(num_slots=num_slots, max_rank=max_rank, max_batch_rows=max_batch_rows)
    cache = CacheConfig(folder=cache_dir, max_disk_bytes=cache_max_bytes)
    service = ServiceConfig(max_queued_requests=max_queued_requests, max_size=max_size)
    policy = signature_policy or (Policy.WARN if trusted_key_files else Policy.OFF)
    verifier = Verifier.from_files(trusted_key_files, policy)
    asyncio.run(run(values, bases(values), engine, cache, verifier, service))


async def run(
    values: dict[str, Any],
    folders: Mapping[str, Path],
    engine: EngineConfig,
    cache: CacheConfig,
    verifier: Verifier,
    service: ServiceConfig,
) -> None:
    """Serves until SIGTERM or SIGINT; requests in flight are finished. `values` are those of the shared options."""
    registry, own_tokens = registry_endpoint(values), authority(values)
    models: dict[str, Model] = {}

    async def warm_up() -> None:
        models.update(await asyncio.to_thread(load_models, folders, engine))

    async def shut_down() -> None:
        for model in models.values():
            await asyncio.to_thread(model.engine.stop)

    with (
        open_registry(registry, own_tokens) as connection,
        verified_by(registry, own_tokens, "inference") as random_tokens,
    ):
        servicer = InferenceServicer(models, AdapterCache(RegistryClient(connection), cache, verifier), service)

        def register(server: grpc.aio.Server) -> None:
            inference_pb2_grpc.add_InferenceServiceServicer_to_server(servicer, server)

        server = Server(
            server_config(values),
            authenticator(values, random_tokens),
            [inference_pb2.DESCRIPTOR.services_by_name["InferenceService"]],
            register,
        )
        await serve(server, warm_up=warm_up, shut_down=shut_down)
