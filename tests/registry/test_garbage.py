"""Garbage collection: what nobody has goes, what anybody has or may still get stays, whoever collects and when."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import update

from atelier.client import MaintenanceClient, RegistryClient
from atelier.errors import DeadlineExceededError, NotFoundError
from atelier.local.seaweedfs import SeaweedFS
from atelier.pb.registry.v1 import registry_pb2 as pb
from atelier.pb.registry.v1.registry_pb2_grpc import RegistryServiceStub
from atelier.rpc.call import Call, set_call
from atelier.rpc.scopes import OPERATOR
from atelier.rpc.status import translated_errors
from atelier.signing import Signer
from atelier.storage.blobs import BlobStore
from atelier.storage.database import utc_now
from services.registry import base_models
from services.registry.commit import Committer, VersionDraft
from services.registry.content_tables import UploadRow
from services.registry.garbage import Collector, GarbageConfig
from services.registry.quota import QuotaConfig, Quotas
from services.registry.storing import BLOBS_PREFIX, Storer, object_key
from services.registry.upload_rows import FOLDER
from tests.harness.files import WEIGHTS, adapter_files, version
from tests.harness.registry import OPERATOR_TENANT, RegistryServer
from tests.registry.lifecycle import delete_fox
from tests.registry.store import database_of, rows_of, sha256_of
from tests.registry.uploads import OWN_FOX, declared

AT_ONCE = 1e-6
"""A grace period that is over: for tests in which no call goes on."""
HOUR = 3600.0


@pytest.fixture(scope="module")
def server(
    seaweedfs: SeaweedFS, signing_key_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RegistryServer]:
    """A registry with a bucket of its own: what other registries of the run store would be garbage to it."""
    folder = tmp_path_factory.mktemp("registry")
    server = RegistryServer(folder, seaweedfs.s3_config("garbage"), signing_key_file, {"janitor-seconds": 0})
    server.start()
    yield server
    server.stop()


@pytest.fixture
def blobs(server: RegistryServer) -> BlobStore:
    """The bucket."""
    return BlobStore(server.s3)


@pytest.fixture
def stub(server: RegistryServer, tenant: str) -> Iterator[RegistryServiceStub]:
    """The test's tenant."""
    with server.connect(tenant) as connection:
        yield RegistryServiceStub(connection.channel)


@pytest.fixture
def registry(server: RegistryServer, tenant: str) -> Iterator[RegistryClient]:
    """The test's tenant, which has the adapter `fox`."""
    with server.connect(tenant) as connection:
        client = RegistryClient(connection)
        client.create_adapter("fox")
        yield client


@pytest.fixture
def files(tenant: str) -> dict[str, bytes]:
    """Files with weights that no other test has."""
    return adapter_files(int(tenant[2:], 16))


@pytest.fixture
def collect_after(server: RegistryServer, blobs: BlobStore) -> Iterator[Callable[[float], Collector]]:
    """Makes collectors with a grace period of so many seconds."""
    with database_of(server) as database:
        yield lambda grace_seconds: Collector(GarbageConfig(grace_seconds=grace_seconds), database, blobs)


def lose(stub: RegistryServiceStub) -> None:
    """Deletes and purges the adapter `fox`."""
    delete_fox(stub)
    purge(stub)


def purge(stub: RegistryServiceStub) -> None:
    """Purges the adapter `fox`."""
    with translated_errors():
        stub.PurgeDeleted(pb.PurgeDeletedRequest(parent=OWN_FOX))


def objects_of(blobs: BlobStore, content: bytes) -> list[str]:
    """The keys of a content's objects."""
    return list(blobs.keys(f"{BLOBS_PREFIX}{sha256_of(content)[:2]}/{sha256_of(content)}/"))


def test_a_content_goes_when_no_version_has_had_it_for_the_grace_period(
    registry: RegistryClient,
    stub: RegistryServiceStub,
    blobs: BlobStore,
    files: dict[str, bytes],
    collect_after: Callable[[float], Collector],
) -> None:
    published = registry.publish("fox", version(), files)
    delete_fox(stub)
    collect_after(AT_ONCE).collect()
    assert len(objects_of(blobs, files[WEIGHTS])) == 1, "deleted, but not purged"
    purge(stub)
    collect_after(HOUR).collect()
    assert len(objects_of(blobs, files[WEIGHTS])) == 1, "within the grace period"
    counted = collect_after(AT_ONCE).count()
    collected = collect_after(AT_ONCE).collect()
    assert collected == counted
    assert collected.blob_count >= 1
    assert collected.blob_bytes >= len(files[WEIGHTS])
    assert objects_of(blobs, files[WEIGHTS]) == []
    with pytest.raises(NotFoundError):
        registry.download(published, WEIGHTS)
    assert collect_after(AT_ONCE).collect().ListFields() == []


def test_a_content_that_another_tenant_has_stays(
    server: RegistryServer,
    registry: RegistryClient,
    stub: RegistryServiceStub,
    tenant: str,
    files: dict[str, bytes],
    collect_after: Callable[[float], Collector],
) -> None:
    registry.publish("fox", version(), files)
    with server.connect(f"{tenant}-2") as connection:
        other = RegistryClient(connection)
        other.create_adapter("fox")
        kept = other.publish("fox", version(), files)
        lose(stub)
        collect_after(AT_ONCE).collect()
        assert other.download(kept, WEIGHTS) == files[WEIGHTS]


def test_a_content_that_comes_back_within_the_grace_period_stays(
    registry: RegistryClient,
    stub: RegistryServiceStub,
    files: dict[str, bytes],
    collect_after: Callable[[float], Collector],
) -> None:
    registry.publish("fox", version(), files)
    lose(stub)
    registry.create_adapter("fox")
    again = registry.publish("fox", version(), files)
    collect_after(AT_ONCE).collect()
    assert registry.download(again, WEIGHTS) == files[WEIGHTS]


def test_objects_of_nothing_go_and_other_keys_are_never_touched(
    blobs: BlobStore, registry: RegistryClient, files: dict[str, bytes], collect_after: Callable[[float], Collector]
) -> None:
    published = registry.publish("fox", version(), files)
    orphan, part = object_key(sha256_of(b"x")), f"{FOLDER}acme/u-gone/part"
    others = [f"sha256/{sha256_of(b'x')}", "jobs/1/checkpoint", "registry-of-somebody-else"]
    for key in (orphan, part, *others):
        blobs.put(key, b"x")
    assert collect_after(HOUR).collect().orphan_count == 0
    counted = collect_after(AT_ONCE).count()
    assert blobs.size_bytes(orphan) == 1, "counted, not collected"
    assert collect_after(AT_ONCE).collect().orphan_count == counted.orphan_count == 2
    assert [blobs.size_bytes(key) for key in (orphan, part)] == [None, None]
    assert [blobs.size_bytes(key) for key in others] == [1, 1, 1]
    assert registry.download(published, WEIGHTS) == files[WEIGHTS]


def test_an_upload_whose_time_is_over_goes_with_its_parts(
    server: RegistryServer,
    registry: RegistryClient,
    stub: RegistryServiceStub,
    blobs: BlobStore,
    files: dict[str, bytes],
    collect_after: Callable[[float], Collector],
    tenant: str,
) -> None:
    begun = [
        stub.CreateUpload(pb.CreateUploadRequest(parent=OWN_FOX, version=version(files=declared(files))))
        for _ in range(2)
    ]
    for each in begun:
        spec = pb.WriteUploadSpec(upload=each.name, path=WEIGHTS)
        data = pb.WriteUploadRequest(data=files[WEIGHTS])
        stub.WriteUpload(iter([pb.WriteUploadRequest(spec=spec), data]))
    over, ongoing = (each.name.rsplit("/", 1)[1] for each in begun)
    with rows_of(server) as session:
        session.execute(update(UploadRow).where(UploadRow.upload_id == over).values(expire_time=utc_now()))
    assert collect_after(HOUR).collect().upload_count == 1
    assert [key.split("/")[3] for key in blobs.keys(f"{FOLDER}{tenant}/")] == [ongoing]
    assert collect_after(AT_ONCE).collect().ListFields() == []
    assert stub.GetUpload(pb.GetUploadRequest(name=begun[1].name)).files[-1].received_bytes == len(files[WEIGHTS])


class Zombie(BlobStore):
    """A collector's way to the bucket that hangs before the first deletion of contents until it is let go on."""

    def __init__(self, server: RegistryServer) -> None:
        super().__init__(server.s3)
        self.hangs = threading.Event()
        self.goes_on = threading.Event()

    def delete_many(self, keys: Iterable[str]) -> None:
        self.hangs.set()
        assert self.goes_on.wait(60)
        super().delete_many(keys)


def test_a_collector_that_deletes_late_cannot_hurt_a_content_that_has_come_back(
    server: RegistryServer,
    registry: RegistryClient,
    stub: RegistryServiceStub,
    blobs: BlobStore,
    files: dict[str, bytes],
    collect_after: Callable[[float], Collector],
) -> None:
    registry.publish("fox", version(), files)
    lose(stub)
    (old_key,) = objects_of(blobs, files[WEIGHTS])
    zombie = Zombie(server)
    with database_of(server) as database, ThreadPoolExecutor(1) as pool:
        late = Collector(GarbageConfig(grace_seconds=HOUR), database, zombie)
        collecting = pool.submit(late.remove_contents, utc_now())
        assert zombie.hangs.wait(60)
        registry.create_adapter("fox")
        again = registry.publish("fox", version(), files)
        zombie.goes_on.set()
        assert collecting.result()[0] >= 1
    assert blobs.size_bytes(old_key) is None
    assert registry.download(again, WEIGHTS) == files[WEIGHTS]
    assert len(objects_of(blobs, files[WEIGHTS])) == 1


class Killed(Exception):
    """The end of a collector's process."""


class Mortal(BlobStore):
    """A way to the bucket of a process that is killed before it deletes anything."""

    def delete_many(self, keys: Iterable[str]) -> None:
        raise Killed


def test_what_a_killed_collector_leaves_the_next_one_takes(
    server: RegistryServer,
    registry: RegistryClient,
    stub: RegistryServiceStub,
    blobs: BlobStore,
    files: dict[str, bytes],
    collect_after: Callable[[float], Collector],
) -> None:
    registry.publish("fox", version(), files)
    lose(stub)
    with database_of(server) as database, pytest.raises(Killed):
        Collector(GarbageConfig(grace_seconds=AT_ONCE), database, Mortal(server.s3)).collect()
    assert len(objects_of(blobs, files[WEIGHTS])) == 1
    assert collect_after(AT_ONCE).collect().orphan_count >= 1
    assert objects_of(blobs, files[WEIGHTS]) == []


def test_a_version_whose_objects_may_be_gone_is_not_committed(
    server: RegistryServer,
    registry: RegistryClient,
    blobs: BlobStore,
    files: dict[str, bytes],
    tenant: str,
) -> None:
    set_call(Call(tenant=tenant, subject="test", correlation_id="test"))
    declaration = version(files=declared(files))
    with database_of(server) as database:
        storer = Storer(blobs)
        with database.transaction(read_only=True) as session:
            base = base_models.find(session, declaration.base_model.digest, "base_model")
        draft = VersionDraft(
            version=declaration,
            stored=[storer.store_content([files[file.path]], file, "file") for file in declaration.files],
            base=base,
            files_field="files",
        )
        committer = Committer(database, storer, Quotas(QuotaConfig()), Signer(), max_age=timedelta(0))
        with pytest.raises(DeadlineExceededError):
            committer.commit(pb.PublishVersionSpec(), {"tenant": tenant, "adapter": "fox"}, draft)
    assert objects_of(blobs, files[WEIGHTS]) == []
    assert list(registry.versions("fox")) == []


def test_an_operator_collects_by_hand(server: RegistryServer) -> None:
    with server.connect(OPERATOR_TENANT, OPERATOR) as connection:
        client = MaintenanceClient(connection)
        client.collect_garbage()
        assert client.collect_garbage(validate_only=True).ListFields() == []
