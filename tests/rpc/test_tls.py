"""TLS of the scaffold: who gets in, renewed certificates under traffic, health for probes, tokens in plaintext."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
from structlog.testing import capture_logs

from atelier.client import ClientTls, Connection, RegistryClient
from atelier.errors import FailedPreconditionError, UnavailableError
from atelier.local.process import free_ports
from atelier.pb.registry.v1 import registry_pb2 as pb
from atelier.pb.registry.v1.registry_pb2_grpc import RegistryServiceStub
from atelier.rpc.call import current_tenant
from atelier.rpc.identity import TokenAuthority
from atelier.rpc.scopes import READER
from atelier.rpc.tls import ServerTls
from tests.harness.certificates import CertificateAuthority
from tests.harness.rpc import SERVICE, ScaffoldServer
from tests.harness.service import health

Serve = Callable[..., ScaffoldServer]


def tenant_of(request: object, context: object) -> pb.Tenant:
    """A handler that names the caller's tenant."""
    return pb.Tenant(name=current_tenant())


@dataclass(frozen=True, kw_only=True, slots=True)
class Site:
    """A server's files, and what its clients need."""

    authority: CertificateAuthority
    server: ServerTls
    token: str

    def ask(self, address: str, **files: Path) -> str:
        """The tenant that a server on this machine sees, over a fresh connection."""
        with Connection(address, self.token, tls=ClientTls(**{"ca_file": self.authority.file, **files})) as connection:
            return RegistryClient(connection).tenant().name

    def client_files(self, name: str = "client") -> dict[str, Path]:
        """A client's certificate, fresh from the authority."""
        certificate_file, key_file = self.authority.issue(name)
        return {"certificate_file": certificate_file, "key_file": key_file}


@pytest.fixture
def site(tmp_path: Path, authority: TokenAuthority) -> Site:
    """An authority that has certified a server."""
    certificates = CertificateAuthority(tmp_path)
    certificate_file, key_file = certificates.issue("server")
    token = authority.issue(tenant="acme", subject="test", scopes=[READER], lifetime_seconds=600)
    return Site(
        authority=certificates,
        server=ServerTls(certificate_file=certificate_file, key_file=key_file),
        token=token,
    )


def mutual(site: Site) -> ServerTls:
    """The server's files where clients must show certificates."""
    files = site.server
    return ServerTls(
        certificate_file=files.certificate_file, key_file=files.key_file, client_ca_file=site.authority.file
    )


def other_authority(tmp_path: Path) -> CertificateAuthority:
    """Somebody else's."""
    folder = tmp_path / "other"
    folder.mkdir()
    return CertificateAuthority(folder)


def test_server_is_known_by_its_authority(serve: Serve, site: Site, tmp_path: Path) -> None:
    server = serve({"GetTenant": tenant_of}, tls=site.server)
    assert site.ask(server.address) == "acme"
    with pytest.raises(UnavailableError):
        site.ask(server.address, ca_file=other_authority(tmp_path).file)


def test_plaintext_finds_nobody_behind_tls(serve: Serve, site: Site) -> None:
    server = serve({"GetTenant": tenant_of}, tls=site.server)
    with server.connect() as connection, pytest.raises(UnavailableError):
        RegistryClient(connection).tenant()


def test_mutual_tls_lets_in_who_shows_a_certificate_of_its_authority(serve: Serve, site: Site, tmp_path: Path) -> None:
    server = serve({"GetTenant": tenant_of}, tls=mutual(site))
    assert site.ask(server.address, **site.client_files()) == "acme"
    with pytest.raises(UnavailableError):
        site.ask(server.address)
    certificate_file, key_file = other_authority(tmp_path).issue("client")
    with pytest.raises(UnavailableError):
        site.ask(server.address, certificate_file=certificate_file, key_file=key_file)


def test_certificates_are_renewed_under_traffic(serve: Serve, site: Site, tmp_path: Path) -> None:
    """From the first authority to another: at every moment one of the two is served, and open connections go on."""
    server = serve({"GetTenant": tenant_of}, tls=site.server)
    stop, failures, calls = threading.Event(), list[Exception](), 0
    new = other_authority(tmp_path)

    def traffic() -> None:
        nonlocal calls
        with Connection(server.address, site.token, tls=ClientTls(ca_file=site.authority.file)) as connection:
            while not stop.is_set():
                try:
                    RegistryClient(connection).tenant()
                    calls += 1
                except Exception as error:
                    failures.append(error)

    thread = threading.Thread(target=traffic)
    thread.start()
    try:
        assert site.ask(server.address) == "acme"
        for replaced, fresh in zip(
            (site.server.certificate_file, site.server.key_file), new.issue("server"), strict=True
        ):
            shutil.move(fresh, replaced)
        assert site.ask(server.address, ca_file=new.file) == "acme"
        with pytest.raises(UnavailableError):
            site.ask(server.address)
    finally:
        stop.set()
        thread.join()
    assert calls > 0
    assert failures == []


def test_authority_of_clients_is_replaced_without_a_restart(serve: Serve, site: Site, tmp_path: Path) -> None:
    """Who has a certificate of the first authority gets in no more; who is connected already stays."""
    client_ca_file = tmp_path / "clients.pem"
    shutil.copy(site.authority.file, client_ca_file)
    tls = ServerTls(
        certificate_file=site.server.certificate_file, key_file=site.server.key_file, client_ca_file=client_ca_file
    )
    server = serve({"GetTenant": tenant_of}, tls=tls)
    old, new = site.client_files("old"), other_authority(tmp_path)
    new_certificate, new_key = new.issue("new")
    old_tls = ClientTls(ca_file=site.authority.file, **old)
    with Connection(server.address, site.token, tls=old_tls) as connection:
        assert RegistryClient(connection).tenant().name == "acme"
        with pytest.raises(UnavailableError):
            site.ask(server.address, certificate_file=new_certificate, key_file=new_key)
        client_ca_file.write_bytes(new.file.read_bytes())
        assert site.ask(server.address, certificate_file=new_certificate, key_file=new_key) == "acme"
        with pytest.raises(UnavailableError):
            site.ask(server.address, **old)
        assert RegistryClient(connection).tenant().name == "acme"


def test_files_that_do_not_fit_together_leave_the_earlier_ones_in_use(serve: Serve, site: Site, tmp_path: Path) -> None:
    server = serve({"GetTenant": tenant_of}, tls=site.server)
    new = other_authority(tmp_path)
    certificate_file, key_file = new.issue("server")
    with capture_logs() as events:
        shutil.move(certificate_file, site.server.certificate_file)
        assert site.ask(server.address) == "acme"
    assert any("earlier ones stay" in event["event"] for event in events)
    shutil.move(key_file, site.server.key_file)
    assert site.ask(server.address, ca_file=new.file) == "acme"


@pytest.mark.parametrize("spoiled", ["certificate_file", "key_file"])
def test_server_does_not_start_with_files_that_are_none(site: Site, spoiled: str) -> None:
    getattr(site.server, spoiled).write_text("not PEM")
    with pytest.raises(ValueError, match="no certificate"):
        site.server.credentials()


def test_probes_ask_for_health_in_plaintext_and_for_nothing_else(serve: Serve, site: Site) -> None:
    (health_port,) = free_ports(1)
    serve({"GetTenant": tenant_of}, tls=mutual(site), health_port=health_port)
    address = f"127.0.0.1:{health_port}"
    assert health(address) == health(address, SERVICE.full_name) == "SERVING"
    with Connection(address, site.token) as connection, pytest.raises(grpc.RpcError) as caught:
        RegistryServiceStub(connection.channel).GetTenant(pb.GetTenantRequest(name="tenants/acme"))
    assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize(
    "address",
    [
        *("registry.example:443", "10.0.0.7:7600", "[2001:db8::1]:7600", "registry:7600", ""),
        *("localhost:80@registry.example", "localhost:80@registry.example:443", "localhost", "localhost:80/x:1"),
    ],
)
def test_no_token_leaves_this_machine_in_plaintext(address: str) -> None:
    with pytest.raises(FailedPreconditionError) as caught:
        Connection(address, "secret")
    assert caught.value.reason == "PLAINTEXT_REFUSED"
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("address", ["127.0.0.1:1", "127.8.8.8:1", "localhost:1", "[::1]:1"])
def test_plaintext_on_this_machine_is_usual(address: str) -> None:
    Connection(address, "secret").channel.close()


def test_plaintext_elsewhere_is_allowed_on_demand() -> None:
    Connection("registry.example:443", "secret", allow_plaintext=True).channel.close()


def test_client_certificate_without_its_key_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="without the other"):
        ClientTls(ca_file=tmp_path, certificate_file=tmp_path)
