"""Quotas: each distinct content counts once, nothing gets past a limit, and a refusal comes before any byte."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from atelier.cli.main import run
from atelier.client import MaintenanceClient, RegistryClient
from atelier.errors import InvalidArgumentError, ResourceExhaustedError
from atelier.local.seaweedfs import SeaweedFS
from atelier.pb.registry.v1 import maintenance_pb2, registry_pb2
from atelier.pb.registry.v1.maintenance_pb2_grpc import MaintenanceServiceStub
from atelier.pb.registry.v1.registry_pb2_grpc import RegistryServiceStub
from atelier.rpc.scopes import OPERATOR
from atelier.rpc.status import translated_errors
from atelier.storage.blobs import BlobStore
from services.registry.storing import BLOBS_PREFIX
from services.registry.upload_rows import MAX_OPEN_UPLOADS
from tests.harness.files import WEIGHTS, adapter_files, version
from tests.harness.registry import BUCKET, OPERATOR_TENANT, RegistryServer
from tests.registry.lifecycle import delete_fox
from tests.registry.uploads import OWN_FOX, declared, upload

FILES = adapter_files()
SIZE = sum(map(len, FILES.values()))
WEIGHTS_SIZE = len(FILES[WEIGHTS])


@pytest.fixture(autouse=True)
def fox(registry: RegistryClient) -> registry_pb2.Adapter:
    """An adapter without versions."""
    return registry.create_adapter("fox")


@pytest.fixture
def maintenance(registry_server: RegistryServer) -> Iterator[MaintenanceClient]:
    """The operator."""
    with registry_server.connect(OPERATOR_TENANT, OPERATOR) as connection:
        yield MaintenanceClient(connection)


def refused(registry: RegistryClient, files: dict[str, bytes]) -> dict[str, str]:
    """The metadata with which a version of these files is refused for a quota."""
    with pytest.raises(ResourceExhaustedError) as caught:
        registry.publish("fox", version(), files)
    assert caught.value.reason == "QUOTA_EXCEEDED"
    return caught.value.metadata


def test_each_distinct_content_counts_once(registry: RegistryClient) -> None:
    registry.publish("fox", version(), {**FILES, "copy.json": FILES["recipe.json"]})
    registry.publish("fox", version(method="lora"), FILES)
    registry.publish("fox", version(), adapter_files(1))
    tenant = registry.tenant()
    assert (tenant.stored_bytes, tenant.version_count, tenant.adapter_count) == (SIZE + WEIGHTS_SIZE, 3, 1)
    assert (tenant.max_stored_bytes, tenant.max_versions) == (0, 0)


def test_bytes_up_to_the_limit_and_no_more(
    registry: RegistryClient, maintenance: MaintenanceClient, tenant: str
) -> None:
    maintenance.set_quota(tenant, max_stored_bytes=SIZE, max_versions=0)
    registry.publish("fox", version(), FILES)
    assert refused(registry, adapter_files(1)) == {
        "quota": "bytes",
        "limit": str(SIZE),
        "used": str(SIZE),
        "wanted": str(WEIGHTS_SIZE),
    }
    registry.publish("fox", version(method="lora"), FILES)
    maintenance.set_quota(tenant, max_stored_bytes=SIZE + WEIGHTS_SIZE, max_versions=0)
    registry.publish("fox", version(), adapter_files(1))
    assert registry.tenant().stored_bytes == registry.tenant().max_stored_bytes


def test_a_refusal_comes_before_any_byte(
    registry_stub: RegistryServiceStub, maintenance: MaintenanceClient, tenant: str
) -> None:
    maintenance.set_quota(tenant, max_stored_bytes=SIZE - 1, max_versions=0)
    for validate_only in (False, True):
        with pytest.raises(ResourceExhaustedError), translated_errors():
            registry_stub.PublishVersion(upload(version(files=declared(FILES)), validate_only=validate_only))


def test_deleted_versions_count_until_they_are_purged(
    registry: RegistryClient, registry_stub: RegistryServiceStub, maintenance: MaintenanceClient, tenant: str
) -> None:
    maintenance.set_quota(tenant, max_stored_bytes=0, max_versions=1)
    registry.publish("fox", version(), FILES)
    assert refused(registry, FILES)["quota"] == "versions"
    delete_fox(registry_stub)
    assert registry.tenant().version_count == 1
    registry_stub.PurgeDeleted(registry_pb2.PurgeDeletedRequest(parent=OWN_FOX))
    assert (registry.tenant().version_count, registry.tenant().stored_bytes) == (0, 0)
    registry.create_adapter("fox")
    registry.publish("fox", version(), FILES)


def test_uploads_at_once_do_not_get_past_a_limit_together(
    registry: RegistryClient, registry_blobs: BlobStore, maintenance: MaintenanceClient, tenant: str
) -> None:
    maintenance.set_quota(tenant, max_stored_bytes=SIZE + WEIGHTS_SIZE, max_versions=0)
    objects = set(registry_blobs.keys(BLOBS_PREFIX))
    first = int(tenant[2:], 16)

    def publish(index: int) -> bool:
        adapter = f"fox-{index}"
        registry.create_adapter(adapter)
        try:
            registry.publish(adapter, version(), adapter_files(first + index))
        except ResourceExhaustedError:
            return False
        return True

    with ThreadPoolExecutor(6) as pool:
        assert sum(pool.map(publish, range(6))) == 2
    assert registry.tenant().stored_bytes == SIZE + WEIGHTS_SIZE
    stored = sum(registry_blobs.size_bytes(key) or 0 for key in set(registry_blobs.keys(BLOBS_PREFIX)) - objects)
    assert stored <= SIZE + WEIGHTS_SIZE, "what was stored for nothing is deleted"


def test_open_uploads_stay_within_the_bytes_that_may_be_stored(
    registry: RegistryClient, registry_server: RegistryServer, maintenance: MaintenanceClient, tenant: str
) -> None:
    maintenance.set_quota(tenant, max_stored_bytes=SIZE + WEIGHTS_SIZE, max_versions=0)
    first = registry.create_upload("fox", version(), FILES)

    def begin(index: int) -> str:
        """What an upload is refused for; nothing when it is begun."""
        with registry_server.connect(tenant) as connection:
            try:
                RegistryClient(connection).create_upload("fox", version(), {WEIGHTS: adapter_files(index)[WEIGHTS]})
            except ResourceExhaustedError as error:
                return error.reason
        return ""

    with ThreadPoolExecutor(4) as pool:
        assert sorted(pool.map(begin, range(1, 5))) == ["", *["QUOTA_EXCEEDED"] * 3]
    with pytest.raises(ResourceExhaustedError) as caught:
        registry.create_upload("fox", version(), adapter_files(1))
    assert (caught.value.metadata["used"], caught.value.metadata["wanted"]) == (str(SIZE + WEIGHTS_SIZE), str(SIZE))
    registry.delete_upload(first.name)
    assert begin(5) == "", "what was given up counts no more"
    registry.publish("fox", version(), FILES)


def test_open_uploads_are_so_many_and_no_more(registry: RegistryClient) -> None:
    begun = [registry.create_upload("fox", version(), FILES) for _ in range(MAX_OPEN_UPLOADS)]
    with pytest.raises(ResourceExhaustedError) as caught:
        registry.create_upload("fox", version(), FILES)
    assert caught.value.reason == "TOO_MANY_UPLOADS"
    registry.delete_upload(begun[0].name)
    registry.create_upload("fox", version(), FILES)


def test_defaults_are_the_servers_and_a_tenants_own_come_before_them(
    seaweedfs: SeaweedFS, signing_key_file: Path, tmp_path: Path
) -> None:
    options = {"max-tenant-versions": 1, "max-tenant-bytes": 10 * SIZE}
    server = RegistryServer(tmp_path, seaweedfs.s3_config(BUCKET), signing_key_file, options)
    server.start()
    with server.connect("acme") as connection, server.connect(OPERATOR_TENANT, OPERATOR) as operators:
        registry, maintenance = RegistryClient(connection), MaintenanceClient(operators)
        assert maintenance.quota("acme").max_versions == registry.tenant().max_versions == 1
        assert registry.tenant().max_stored_bytes == 10 * SIZE
        registry.create_adapter("fox")
        registry.publish("fox", version(), FILES)
        refused(registry, FILES)
        maintenance.set_quota("acme", max_stored_bytes=0, max_versions=0)
        registry.publish("fox", version(), FILES)
        assert registry.tenant().max_stored_bytes == 0
    server.stop()


@pytest.mark.parametrize(
    ("quota", "field"),
    [
        (maintenance_pb2.Quota(name="quotas/acme", max_versions=-1), "quota.max_versions"),
        (maintenance_pb2.Quota(name="quotas/acme", max_stored_bytes=-1), "quota.max_stored_bytes"),
        (maintenance_pb2.Quota(name="tenants/acme"), "quota.name"),
        (maintenance_pb2.Quota(name="quotas/ACME"), "quota.name"),
    ],
)
def test_wrong_quotas_are_refused(registry_server: RegistryServer, quota: maintenance_pb2.Quota, field: str) -> None:
    with registry_server.connect(OPERATOR_TENANT, OPERATOR) as connection:
        stub = MaintenanceServiceStub(connection.channel)
        with pytest.raises(InvalidArgumentError) as caught, translated_errors():
            stub.UpdateQuota(maintenance_pb2.UpdateQuotaRequest(quota=quota))
    assert caught.value.violations[0].field == field


def test_the_command_shows_and_sets_a_quota(
    registry_server: RegistryServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tenant: str
) -> None:
    monkeypatch.setenv("ATELIER_REGISTRY", registry_server.address)
    monkeypatch.setenv("ATELIER_TOKEN", registry_server.token(OPERATOR_TENANT, OPERATOR))
    assert run(["registry", "quota", tenant]) == 0
    assert capsys.readouterr().out.count("no limit") == 2
    assert run(["registry", "quota", tenant, "--max-versions", "7"]) == 0
    capsys.readouterr()
    assert run(["registry", "quota", tenant, "--max-bytes", "9", "--json"]) == 0
    assert '"max_stored_bytes": "9"' in (shown := capsys.readouterr().out)
    assert '"max_versions": "7"' in shown
