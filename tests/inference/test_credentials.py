"""Random tokens at the inference service, which asks the registry about them, with and without TLS between the two."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from atelier.cli.main import run
from atelier.client import ClientTls, Connection, InferenceClient, RegistryClient, TokenClient
from atelier.diffusion.base_layers import describe_base
from atelier.diffusion.families.stable_diffusion import StableDiffusion
from atelier.errors import UnauthenticatedError, UnavailableError
from atelier.local.process import free_ports, wait_until
from atelier.rpc.scopes import ADMIN, READER
from atelier.rpc.tokens import GOOD_SECONDS
from tests.harness.certificates import CertificateAuthority
from tests.harness.inference import EMOJI_SD, InferenceServer, publish, random_factors, request
from tests.harness.registry import RegistryServer


@pytest.fixture
def talkative(
    registry_server: RegistryServer, signing_key_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[InferenceServer]:
    """A service that logs all that it can."""
    monkeypatch.setenv("ATELIER_LOG_LEVEL", "DEBUG")
    server = InferenceServer(tmp_path, registry_server.address, signing_key_file, {"max-rank": 4})
    server.start()
    yield server
    server.stop()


def test_token_is_good_until_it_is_revoked_and_never_logged(
    talkative: InferenceServer, registry_server: RegistryServer, tenant: str
) -> None:
    with registry_server.connect(tenant, ADMIN) as administrator:
        tokens = TokenClient(administrator)
        secret = tokens.create("painter", [READER]).secret
        with Connection(talkative.address, secret) as connection:
            inference = InferenceClient(connection)
            assert inference.models()
            tokens.revoke("painter")

            def refused() -> bool:
                try:
                    inference.models()
                except UnauthenticatedError:
                    return True
                return False

            wait_until(refused, timeout_seconds=GOOD_SECONDS + 5, what="the revoked token is refused")
    everything = talkative.process.log_path.read_text() + str(talkative.metrics())
    assert '"level": "debug"' in everything
    assert secret not in everything
    assert talkative.token(tenant).partition(".")[0] not in everything


@pytest.fixture
def certificates(tmp_path: Path) -> CertificateAuthority:
    """The installation's own authority."""
    return CertificateAuthority(tmp_path)


@pytest.fixture
def client_tls(certificates: CertificateAuthority) -> ClientTls:
    """A client with a certificate."""
    certificate_file, key_file = certificates.issue("client")
    return ClientTls(ca_file=certificates.file, certificate_file=certificate_file, key_file=key_file)


def listening(certificates: CertificateAuthority, name: str) -> dict[str, object]:
    """Options of a server that lets in who has a certificate of the authority."""
    certificate_file, key_file = certificates.issue(name)
    return {
        "tls-certificate-file": certificate_file,
        "tls-key-file": key_file,
        "tls-client-ca-file": certificates.file,
        "health-port": free_ports(1)[0],
    }


@pytest.fixture
def secure_registry(
    registry_server: RegistryServer,
    certificates: CertificateAuthority,
    client_tls: ClientTls,
    signing_key_file: Path,
    tmp_path: Path,
) -> Iterator[RegistryServer]:
    """A registry that speaks mutual TLS."""
    server = RegistryServer(tmp_path, registry_server.s3, signing_key_file, listening(certificates, "registry"))
    server.client_tls = client_tls
    server.start()
    yield server
    server.stop()


@pytest.fixture
def secure_inference(
    secure_registry: RegistryServer,
    certificates: CertificateAuthority,
    client_tls: ClientTls,
    signing_key_file: Path,
    tmp_path: Path,
) -> Iterator[InferenceServer]:
    """An inference service that speaks mutual TLS, also with the registry."""
    certificate_file, key_file = certificates.issue("inference-as-client")
    options = {
        **listening(certificates, "inference"),
        "registry-ca-file": certificates.file,
        "registry-certificate-file": certificate_file,
        "registry-key-file": key_file,
        "max-rank": 4,
    }
    server = InferenceServer(tmp_path, secure_registry.address, signing_key_file, options)
    server.client_tls = client_tls
    server.start()
    yield server
    server.stop()


def test_services_and_the_command_line_speak_mutual_tls(
    secure_registry: RegistryServer,
    secure_inference: InferenceServer,
    client_tls: ClientTls,
    base: StableDiffusion,
    tenant: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    with secure_registry.connect(tenant, ADMIN) as connection:
        secure_registry.register(describe_base(EMOJI_SD, base.name))
        publish(RegistryClient(connection), base, "fox", random_factors(base, seed=1))
        secret = TokenClient(connection).create("painter", [READER]).secret
    with Connection(secure_inference.address, secret, tls=client_tls) as connection:
        (*_, image, _) = InferenceClient(connection).stream(request("fox", num_inference_steps=1))
        assert image.image.png
    without_certificate = ClientTls(ca_file=client_tls.ca_file)
    with (
        Connection(secure_inference.address, secret, tls=without_certificate) as connection,
        pytest.raises(UnavailableError),
    ):
        InferenceClient(connection).models()
    monkeypatch.setenv("ATELIER_PROFILE", str(tmp_path / "profile.json"))
    monkeypatch.setenv("ATELIER_REGISTRY", secure_registry.address)
    monkeypatch.setenv("ATELIER_TOKEN", secret)
    assert run(["adapters", "list"]) == 1
    for name, path in (
        ("CA", client_tls.ca_file),
        ("CERTIFICATE", client_tls.certificate_file),
        ("KEY", client_tls.key_file),
    ):
        monkeypatch.setenv(f"ATELIER_{name}_FILE", str(path))
    assert run(["adapters", "list", "--json"]) == 0
    assert "adapters/fox" in capsys.readouterr().out
