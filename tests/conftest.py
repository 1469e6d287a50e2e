"""Fixtures for every test: one real S3 server and one of each service a run, a fresh tenant a test."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from atelier.client import Connection, RegistryClient
from atelier.local.postgres import Postgres
from atelier.local.seaweedfs import SeaweedFS
from atelier.pb.registry.v1.registry_pb2_grpc import RegistryServiceStub
from atelier.rpc.identity import TokenAuthority, create_key_file
from atelier.signing import create_key_files
from atelier.storage.blobs import BlobStore
from tests.harness.registry import BUCKET, RegistryServer


def pytest_addoption(parser: pytest.Parser) -> None:
    """Lets every test of the registry run on PostgreSQL too."""
    parser.addoption("--database", choices=["sqlite", "postgresql"], default="sqlite", help="of the registry")


@pytest.fixture(scope="session")
def signing_key_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The key that signs this run's tokens."""
    path = tmp_path_factory.mktemp("keys") / "signing.key"
    create_key_file(path)
    return path


@pytest.fixture(scope="session")
def manifest_key_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The key that signs this run's versions; its public key lies beside it."""
    path = tmp_path_factory.mktemp("keys") / "manifest.pem"
    create_key_files(path)
    return path


@pytest.fixture(scope="session")
def authority(signing_key_file: Path) -> TokenAuthority:
    """Issues tokens that the services of this run accept."""
    return TokenAuthority.from_file(signing_key_file)


@pytest.fixture(scope="session")
def seaweedfs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SeaweedFS]:
    """A real S3 server."""
    server = SeaweedFS(tmp_path_factory.mktemp("seaweedfs"))
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A real PostgreSQL."""
    with Postgres() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database; the test runs on either kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'test.db'}"
    return request.getfixturevalue("postgres").create_database()


@pytest.fixture(scope="session")
def registry_server(
    request: pytest.FixtureRequest,
    seaweedfs: SeaweedFS,
    signing_key_file: Path,
    manifest_key_file: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[RegistryServer]:
    """The registry's process over the S3 server and an SQLite file, or what `--database` says."""
    options: dict[str, object] = {"manifest-key-file": manifest_key_file}
    if request.config.getoption("--database") == "postgresql":
        options["database-url"] = request.getfixturevalue("postgres").create_database()
    folder = tmp_path_factory.mktemp("registry")
    server = RegistryServer(folder, seaweedfs.s3_config(BUCKET), signing_key_file, options)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def registry_blobs(registry_server: RegistryServer) -> BlobStore:
    """The bucket behind the registry, for a look past it."""
    return BlobStore(registry_server.s3)


@pytest.fixture
def tenant() -> str:
    """A tenant that nobody has used."""
    return f"t-{uuid.uuid4().hex[:12]}"


@pytest.fixture
def registry_connection(registry_server: RegistryServer, tenant: str) -> Iterator[Connection]:
    """The test's tenant at the registry."""
    with registry_server.connect(tenant) as connection:
        yield connection


@pytest.fixture
def registry(registry_connection: Connection) -> RegistryClient:
    """The test's tenant at the registry, through the SDK."""
    return RegistryClient(registry_connection)


@pytest.fixture
def registry_stub(registry_connection: Connection) -> RegistryServiceStub:
    """The test's tenant at the registry, for requests that the SDK would not send."""
    return RegistryServiceStub(registry_connection.channel)
