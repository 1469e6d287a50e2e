"""Random tokens at the trainer, which asks the registry about them, with and without TLS between the two."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from atelier.client import ClientTls, Connection, TokenClient, TrainerClient
from atelier.errors import PermissionDeniedError, UnauthenticatedError
from atelier.local.process import free_ports
from atelier.local.ray_cluster import RayCluster
from atelier.rpc.scopes import ADMIN, READER, TRAINER
from tests.harness.certificates import CertificateAuthority
from tests.harness.registry import RegistryServer
from tests.harness.service import ServiceProcess
from tests.harness.trainer import TrainerServer, image_bytes


def check_random_tokens(registry: RegistryServer, trainer: ServiceProcess, tenant: str) -> None:
    """A token speaks for its tenant with its scopes; a secret that is none, for nobody."""
    with registry.connect(tenant, ADMIN) as connection:
        tokens = TokenClient(connection)
        able, weak = tokens.create("able", [TRAINER]).secret, tokens.create("weak", [READER]).secret
    images = [("a.png", image_bytes(), "")]
    with Connection(trainer.address, able) as connection:
        made = TrainerClient(connection).create_dataset("small", images)
    assert made.name == f"tenants/{tenant}/datasets/small"
    with Connection(trainer.address, weak) as connection:
        reader = TrainerClient(connection)
        assert [dataset.name for dataset in reader.datasets()] == [made.name]
        with pytest.raises(PermissionDeniedError):
            reader.create_dataset("another", images)
    with Connection(trainer.address, "atl_" + "x" * 43) as connection, pytest.raises(UnauthenticatedError) as caught:
        list(TrainerClient(connection).datasets())
    assert caught.value.reason == "TOKEN_INVALID"


def test_random_tokens_are_known(registry_server: RegistryServer, trainer_server: TrainerServer, tenant: str) -> None:
    check_random_tokens(registry_server, trainer_server, tenant)


@pytest.fixture
def secure_registry(
    registry_server: RegistryServer, signing_key_file: Path, tmp_path: Path
) -> Iterator[RegistryServer]:
    """A registry that speaks TLS, by a certificate of the authority beside it."""
    authority = CertificateAuthority(tmp_path)
    certificate_file, key_file = authority.issue("registry")
    options = {
        "tls-certificate-file": certificate_file,
        "tls-key-file": key_file,
        "health-port": free_ports(1)[0],
    }
    server = RegistryServer(tmp_path, registry_server.s3, signing_key_file, options)
    server.client_tls = ClientTls(ca_file=authority.file)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def secure_trainer(
    secure_registry: RegistryServer, ray_cluster: RayCluster, signing_key_file: Path, tmp_path: Path
) -> Iterator[TrainerServer]:
    """A trainer that speaks TLS with this registry."""
    assert secure_registry.client_tls
    server = TrainerServer(
        tmp_path / "trainer",
        s3=secure_registry.s3,
        key_file=signing_key_file,
        registry=secure_registry.address,
        ray=ray_cluster,
        options={"registry-ca-file": secure_registry.client_tls.ca_file},
    )
    server.start()
    yield server
    server.stop()


def test_the_registry_is_asked_by_tls(
    secure_registry: RegistryServer, secure_trainer: TrainerServer, tenant: str
) -> None:
    check_random_tokens(secure_registry, secure_trainer, tenant)
