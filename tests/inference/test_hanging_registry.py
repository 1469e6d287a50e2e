"""A registry that takes connections and never answers, or answers in part, holds up only those who need it."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import grpc
import pytest

from atelier.client import Connection, RegistryClient
from atelier.client.connection import Endpoint
from atelier.diffusion.adapter_file import FILE_NAME
from atelier.diffusion.families.stable_diffusion import StableDiffusion
from atelier.errors import AtelierError, UnavailableError
from atelier.pb.common.v1.common_pb2 import File
from atelier.pb.inference.v1.inference_pb2_grpc import InferenceServiceStub
from atelier.pb.registry.v1 import registry_pb2
from atelier.rpc.call import Call, set_call
from atelier.rpc.identity import TokenAuthority
from atelier.rpc.status import from_rpc_error
from atelier.signing import Policy, Verifier
from services.inference.adapters import RESOLVE_THREADS, AdapterCache, CacheConfig, open_registry
from services.inference.engine import Engine, EngineConfig
from tests.harness.inference import InferenceServer, request
from tests.harness.rpc import ScaffoldServer


@pytest.fixture
def silent_address() -> Iterator[str]:
    """A socket that listens, and nobody behind it."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def server(silent_address: str, signing_key_file: Path, tmp_path: Path) -> Iterator[InferenceServer]:
    """A service with the silent registry."""
    server = InferenceServer(tmp_path, silent_address, signing_key_file, {"max-rank": 4})
    server.start()
    yield server
    server.stop()


def test_the_bare_base_is_drawn_while_requests_with_adapters_wait_for_it(server: InferenceServer) -> None:
    metadata = [("authorization", f"Bearer {server.token('acme')}")]
    with grpc.insecure_channel(server.address, options=[("grpc.enable_retries", 0)]) as channel:
        stub = InferenceServiceStub(channel)
        waiting = [stub.Generate(request("fox"), metadata=metadata) for _ in range(2 * RESOLVE_THREADS)]
        (*_, image, _) = stub.Generate(request(num_inference_steps=1), metadata=metadata)
        assert image.image.png
        assert not any(call.done() for call in waiting)
        errors = [failure_of(call) for call in waiting]
    assert {(type(error), error.reason) for error in errors} == {(UnavailableError, "REGISTRY_UNAVAILABLE")}


def failure_of(call: grpc.Call) -> AtelierError:
    """What a call ends with, that must not succeed."""
    with pytest.raises(grpc.RpcError) as caught:
        next(call)
    return from_rpc_error(caught.value)


@pytest.fixture
def engine(base: StableDiffusion) -> Iterator[Engine]:
    """Slots for an adapter, and nobody who draws."""
    engine = Engine(base, EngineConfig(num_slots=2, max_rank=4))
    yield engine
    engine.bank.close()


def test_a_download_that_stalls_is_given_up_at_both_ends(
    engine: Engine, authority: TokenAuthority, tmp_path: Path
) -> None:
    given_up = threading.Event()

    async def stall(request: object, context: object) -> AsyncIterator[registry_pb2.DownloadFileResponse]:
        yield registry_pb2.DownloadFileResponse(data=b"x")
        try:
            await asyncio.Event().wait()
        finally:
            given_up.set()

    file = File(path=FILE_NAME, size_bytes=100, sha256="ab" * 32)
    version = registry_pb2.Version(name="tenants/t/adapters/fox/versions/1", digest=f"sha256:{'cd' * 32}", files=[file])

    async def load(connection: Connection) -> None:
        set_call(Call(tenant="t", subject="test", correlation_id="test-test"))
        config = CacheConfig(folder=tmp_path, download_seconds=0.5)
        await AdapterCache(RegistryClient(connection), config, Verifier([], Policy.OFF)).load(
            version, engine, field="adapters[0]"
        )

    registry = ScaffoldServer(authority, {"DownloadFile": stall})
    with (
        open_registry(Endpoint(address=registry.address), authority) as connection,
        pytest.raises(UnavailableError) as caught,
    ):
        asyncio.run(load(connection))
    assert caught.value.reason == "REGISTRY_UNAVAILABLE"
    assert given_up.wait(10)
    registry.close()
