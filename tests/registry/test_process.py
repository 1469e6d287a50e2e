"""The registry as a process: what it needs, what it keeps, what it says, how it ends."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from atelier.client import RegistryClient
from atelier.local.seaweedfs import SeaweedFS
from atelier.pb.registry.v1 import registry_pb2 as pb
from atelier.pb.registry.v1.registry_pb2_grpc import RegistryServiceStub
from atelier.rpc.call import CORRELATION_HEADER
from tests.harness.files import adapter_files, version
from tests.harness.registry import BUCKET, RegistryServer
from tests.harness.service import health
from tests.registry.uploads import declared, upload

SERVICE = "atelier.registry.v1.RegistryService"


@pytest.fixture
def own_server(seaweedfs: SeaweedFS, signing_key_file: Path, tmp_path: Path) -> Iterator[RegistryServer]:
    """A registry of the test's own, to stop and start."""
    options = {"drain-seconds": 0.5, "grace-seconds": 30}
    server = RegistryServer(tmp_path, seaweedfs.s3_config(BUCKET), signing_key_file, options)
    server.start()
    yield server
    server.stop()


def test_process_needs_no_machine_learning() -> None:
    code = "import sys, services.registry.main; print(*sorted({'torch', 'diffusers', 'ray'} & {*sys.modules}))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "\n"


def test_restart_keeps_everything(own_server: RegistryServer) -> None:
    with own_server.connect("acme") as connection:
        registry = RegistryClient(connection)
        registry.create_adapter("fox")
        published = registry.publish("fox", version(), adapter_files())
        alias = registry.set_alias("fox", "prod", "1")
        before = registry.adapter("fox")
        own_server.stop()
        own_server.start()
        assert registry.adapter("fox") == before
        assert registry.resolve("fox@prod") == published
        assert list(registry.aliases("fox")) == [alias]
        assert registry.download(published, "README.md") == adapter_files()["README.md"]


def test_terminated_process_lets_an_upload_finish_and_takes_no_new_calls(own_server: RegistryServer) -> None:
    files = adapter_files()
    go_on = threading.Event()

    def messages() -> Iterator[pb.PublishVersionRequest]:
        *first, last = upload(version(files=declared(files)), files.values())
        yield from first
        go_on.wait()
        yield last

    with own_server.connect("acme") as connection:
        registry = RegistryClient(connection)
        registry.create_adapter("fox")
        running = RegistryServiceStub(connection.channel).PublishVersion.future(messages())
        own_server.wait_for_upload()
        own_server.terminate()
        own_server.wait_for_health("NOT_SERVING")
        own_server.wait_for_health("CONNECTION_REFUSED")
        go_on.set()
        assert running.result().name.endswith("/versions/1")
        assert own_server.exit_status() == 0


def test_health_knows_the_service(registry_server: RegistryServer) -> None:
    assert health(registry_server.address) == health(registry_server.address, SERVICE) == "SERVING"
    assert health(registry_server.address, "atelier.unknown.v1.Service") == "NOT_FOUND"


def test_log_is_json_with_correlation_ids_and_without_secrets(own_server: RegistryServer) -> None:
    token = own_server.token("acme")
    metadata = [("authorization", f"Bearer {token}"), (CORRELATION_HEADER, "test-correlation-1")]
    with grpc.insecure_channel(own_server.address) as channel:
        RegistryServiceStub(channel).GetTenant(pb.GetTenantRequest(name="tenants/-"), metadata=metadata)
    own_server.stop()
    log = own_server.process.log_path.read_text()
    events = [json.loads(line) for line in log.splitlines()]
    calls = [event for event in events if event.get("correlation_id") == "test-correlation-1"]
    assert [(event["event"], event["code"], event["service"]) for event in calls] == [("rpc", "OK", "registry")]
    assert calls[0]["method"] == f"/{SERVICE}/GetTenant"
    assert token not in log
    assert own_server.s3.secret_key not in log


def test_metrics_count_methods_and_codes_and_name_no_tenant(
    registry: RegistryClient, registry_server: RegistryServer, tenant: str
) -> None:
    labels = f'{{grpc_code="OK",grpc_method="CreateAdapter",grpc_service="{SERVICE}"}}'
    name = f"grpc_server_handled_total{labels}"
    before = registry_server.metrics().get(name, 0)
    registry.create_adapter("fox")
    after = registry_server.metrics()
    assert after[name] == before + 1
    assert not any(tenant in each or "fox" in each for each in after)


def test_missing_secret_key_is_said_by_its_variable(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "services.registry", "--port=1", "--metrics-port=2", "--s3-endpoint=x"]
    more = ["--s3-access-key=x", "--database-url=sqlite://", f"--signing-key-file={tmp_path}"]
    result = subprocess.run([*command, *more], capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert "--s3-secret-key" in result.stderr
