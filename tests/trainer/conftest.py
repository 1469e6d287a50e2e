"""A trainer over real S3, a real registry and a real Ray cluster."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from atelier.client import Connection, TrainerClient
from atelier.local.ray_cluster import RayCluster
from atelier.local.seaweedfs import SeaweedFS
from atelier.pb.trainer.v1.trainer_pb2_grpc import TrainerServiceStub
from tests.harness.registry import RegistryServer
from tests.harness.trainer import TrainerServer, image_bytes


@pytest.fixture(scope="session")
def ray_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayCluster]:
    """A Ray cluster of one node."""
    cluster = RayCluster(tmp_path_factory.mktemp("ray"))
    cluster.start()
    yield cluster
    cluster.stop()


@pytest.fixture(scope="package")
def trainer_server(
    seaweedfs: SeaweedFS,
    registry_server: RegistryServer,
    ray_cluster: RayCluster,
    signing_key_file: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[TrainerServer]:
    """The trainer's process."""
    server = TrainerServer(
        tmp_path_factory.mktemp("trainer"),
        s3=seaweedfs.s3_config("trainer"),
        key_file=signing_key_file,
        registry=registry_server.address,
        ray=ray_cluster,
    )
    server.start()
    yield server
    server.stop()


@pytest.fixture
def trainer_connection(trainer_server: TrainerServer, tenant: str) -> Iterator[Connection]:
    """The test's tenant at the trainer."""
    with trainer_server.connect(tenant) as connection:
        yield connection


@pytest.fixture
def trainer(trainer_connection: Connection) -> TrainerClient:
    """The test's tenant at the trainer, through the SDK."""
    return TrainerClient(trainer_connection)


@pytest.fixture
def trainer_stub(trainer_connection: Connection) -> TrainerServiceStub:
    """The test's tenant at the trainer, for requests that the SDK would not send."""
    return TrainerServiceStub(trainer_connection.channel)


@pytest.fixture
def dataset(trainer: TrainerClient) -> str:
    """Full name of a small dataset of the test's tenant."""
    images = [(f"{index}.png", image_bytes(index), "") for index in range(2)]
    return trainer.create_dataset("small", images).name
