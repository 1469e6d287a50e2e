"""The inference service as a process: how it starts and ends, what is left on disk, and a registry that goes away."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from atelier.client import InferenceClient, RegistryClient
from atelier.diffusion.base import Base
from atelier.diffusion.base_layers import describe_base
from atelier.errors import AtelierError, UnavailableError
from atelier.local.process import wait_until
from atelier.local.seaweedfs import SeaweedFS
from atelier.pb.inference.v1.inference_pb2_grpc import InferenceServiceStub
from tests.harness.inference import EMOJI_SD, InferenceServer, publish, random_factors, request
from tests.harness.registry import RegistryServer
from tests.harness.service import health


@pytest.fixture
def own_registry(seaweedfs: SeaweedFS, signing_key_file: Path, tmp_path: Path) -> Iterator[RegistryServer]:
    """A registry of the test's own, to stop and start, which knows the base model."""
    server = RegistryServer(tmp_path / "registry", seaweedfs.s3_config("restart"), signing_key_file)
    server.start()
    server.register(describe_base(EMOJI_SD, "emoji-sd"))
    yield server
    server.stop()


@pytest.fixture
def own_inference(own_registry: RegistryServer, signing_key_file: Path, tmp_path: Path) -> Iterator[InferenceServer]:
    """An inference service of the test's own; the test starts it."""
    server = InferenceServer(
        tmp_path / "inference", own_registry.address, signing_key_file, {"grace-seconds": 60, "max-rank": 8}
    )
    yield server
    server.stop()


def test_lives_through_restarts_corrupt_files_and_the_loss_of_its_registry(
    base: Base, own_registry: RegistryServer, own_inference: InferenceServer
) -> None:
    with own_registry.connect("acme") as connection:
        registry = RegistryClient(connection)
        for index, name in enumerate(("kept", "rotten")):
            publish(registry, base, name, random_factors(base, seed=index, layers="attn"))
        kept, rotten = (registry.resolve(name).digest.removeprefix("sha256:") for name in ("kept", "rotten"))

    _starts_in_order(own_inference)
    drawn = {name: _draw(own_inference, name) for name in ("kept", "rotten")}
    _drains(own_inference)

    assert {entry.name for entry in own_inference.cache_folder.iterdir()} == {kept, rotten}
    (file,) = (own_inference.cache_folder / rotten).iterdir()
    contents = bytearray(file.read_bytes())
    contents[-1] ^= 1
    file.write_bytes(contents)
    own_inference.start()
    assert {name: _draw(own_inference, name) for name in drawn} == drawn
    assert (own_inference.loads("disk"), own_inference.loads("registry")) == (1, 1)

    own_registry.stop()
    with own_inference.connect("acme") as connection:
        inference = InferenceClient(connection)
        with pytest.raises(UnavailableError) as caught:
            inference.generate(request("kept"))
        assert caught.value.reason == "REGISTRY_UNAVAILABLE"
        assert caught.value.retry_after_seconds
        assert inference.generate(request()).images
        own_registry.start()
        wait_until(lambda: _serves(inference, "kept"), timeout_seconds=60, what="the adapter is served again")


def _starts_in_order(server: InferenceServer) -> None:
    server.process.start()
    statuses = [health(server.address)]

    def serving() -> bool:
        statuses.append(health(server.address))
        return statuses[-1] == "SERVING"

    wait_until(serving, timeout_seconds=60, what="the service serves")
    assert "NOT_SERVING" in statuses


def _draw(server: InferenceServer, adapter: str) -> bytes:
    with server.connect("acme") as connection:
        return InferenceClient(connection).generate(request(adapter)).images[0].png


def _drains(server: InferenceServer) -> None:
    """A call that runs is finished after SIGTERM."""
    with server.connect("acme") as connection, ThreadPoolExecutor(1) as pool:
        call = InferenceServiceStub(connection.channel).Generate(request(num_inference_steps=20))
        assert next(call).progress.step == 0
        stopped = pool.submit(server.process.stop, grace_seconds=60)
        assert [answer.WhichOneof("content") for answer in call][-2:] == ["image", "summary"]
        stopped.result()


def _serves(inference: InferenceClient, adapter: str) -> bool:
    try:
        return bool(inference.generate(request(adapter, num_inference_steps=1)).images)
    except AtelierError:
        return False
