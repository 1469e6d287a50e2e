"""Collectors and the janitor beside a registry's process that serves, is killed, or must not start."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

from sqlalchemy import func, select, update

from atelier.client import RegistryClient
from atelier.local.process import wait_until
from atelier.local.seaweedfs import SeaweedFS
from atelier.pb.registry.v1 import registry_pb2 as pb
from atelier.pb.registry.v1.registry_pb2_grpc import RegistryServiceStub
from atelier.storage.blobs import BlobStore
from atelier.storage.database import utc_now
from services.registry.content_tables import BlobRow, UploadRow
from services.registry.garbage import Collector, GarbageConfig
from services.registry.storing import BLOBS_PREFIX
from tests.harness.files import WEIGHTS, adapter_files, version
from tests.harness.registry import RegistryServer
from tests.registry.lifecycle import delete_fox
from tests.registry.store import database_of, objects_begun, rows_of
from tests.registry.uploads import OWN_FOX, declared, upload

TENANTS = ("a", "b")
RACE_REMOVALS = 12
"""By each collector, of contents that come back at once: then the race is over."""


def test_contents_that_come_and_go_under_several_collectors_are_never_lost(
    seaweedfs: SeaweedFS, signing_key_file: Path, tmp_path: Path, database_url: str
) -> None:
    """Publishers of the same bytes, each of which loses them again, against collectors without any grace period."""
    s3 = seaweedfs.s3_config(f"race-{database_url.partition('+')[0].partition(':')[0]}")
    server = RegistryServer(tmp_path, s3, signing_key_file, {"database-url": database_url, "janitor-seconds": 0})
    server.start()
    files, over = adapter_files(), threading.Event()

    def publish(tenant: str) -> int:
        with server.connect(tenant) as connection:
            registry, stub = RegistryClient(connection), RegistryServiceStub(connection.channel)
            for count in itertools.count(1):
                registry.create_adapter("fox")
                published = registry.publish("fox", version(), files)
                assert {path: registry.download(published, path) for path in files} == files
                if over.is_set():
                    return count
                delete_fox(stub)
                stub.PurgeDeleted(pb.PurgeDeletedRequest(parent=OWN_FOX))
        raise AssertionError("counts without end")

    def collect(_: int) -> int:
        with database_of(server) as database:
            collector, removed = Collector(GarbageConfig(grace_seconds=3600), database, BlobStore(s3)), 0
            while removed < RACE_REMOVALS:
                removed += collector.remove_contents(utc_now())[0]
        return removed

    with ThreadPoolExecutor(4) as pool:
        published = pool.map(publish, TENANTS)
        assert all(removed >= RACE_REMOVALS for removed in pool.map(collect, range(2)))
        over.set()
        assert all(count > 1 for count in published)
    assert_consistent(server, s3_objects=list(BlobStore(s3).keys(BLOBS_PREFIX)))
    server.stop()


def assert_consistent(server: RegistryServer, *, s3_objects: list[str]) -> None:
    """Every row has its object and every object its row, and the tenants' counts are right."""
    with rows_of(server) as session:
        keys = session.scalars(select(BlobRow.object_key)).all()
        assert sorted(keys) == sorted(s3_objects)
        assert session.scalar(select(func.count()).where(BlobRow.unreferenced_time.is_not(None))) == 0
    for tenant in TENANTS:
        with server.connect(tenant) as connection:
            counted = RegistryClient(connection).tenant()
            assert counted.version_count == 1
            assert counted.stored_bytes == sum(map(len, adapter_files().values()))


def test_parts_of_an_object_that_a_killed_registry_leaves_go(
    seaweedfs: SeaweedFS, signing_key_file: Path, tmp_path: Path
) -> None:
    s3 = seaweedfs.s3_config("killed")
    server = RegistryServer(tmp_path, s3, signing_key_file)
    server.start()
    BlobStore(s3).create_bucket()
    large = adapter_files(weights_bytes=24_000_000)
    done = threading.Event()

    def messages() -> Iterator[pb.PublishVersionRequest]:
        half = b"".join(large.values())[: len(large[WEIGHTS]) // 2]
        pieces = (half[start : start + 2**20] for start in range(0, len(half), 2**20))
        yield from upload(version(files=declared(large)), pieces)
        done.wait()

    with server.connect("acme") as connection:
        RegistryClient(connection).create_adapter("fox")
        call = RegistryServiceStub(connection.channel).PublishVersion.future(messages())
        wait_until(lambda: bool(objects_begun(s3)), timeout_seconds=30, what="a part is stored")
        server.kill()
        assert call.exception() is not None
        done.set()
    with database_of(server) as database:
        collector = Collector(GarbageConfig(grace_seconds=1e-6), database, BlobStore(s3))
        counted, collected = collector.count(), collector.collect()
    assert counted == collected
    assert collected.orphan_count == 4, "the three small files, and the parts of the large one"
    assert objects_begun(s3) == []
    assert list(BlobStore(s3).keys("")) == []


def test_the_janitor_does_it_all_by_itself(seaweedfs: SeaweedFS, signing_key_file: Path, tmp_path: Path) -> None:
    server = RegistryServer(tmp_path, seaweedfs.s3_config("janitor"), signing_key_file, {"janitor-seconds": 0.2})
    server.start()
    with server.connect("acme") as connection:
        registry, stub = RegistryClient(connection), RegistryServiceStub(connection.channel)
        registry.create_adapter("fox")
        for seed in range(3):
            registry.publish("fox", version(), adapter_files(seed))
        fox = pb.Adapter(name=OWN_FOX, retention=pb.RetentionPolicy(keep_last=1))
        stub.UpdateAdapter(pb.UpdateAdapterRequest(adapter=fox))
        wait_until(lambda: len(list(registry.versions("fox"))) == 1, timeout_seconds=30, what="retention is applied")
        begun = stub.CreateUpload(
            pb.CreateUploadRequest(parent=OWN_FOX, version=version(files=declared(adapter_files())))
        )
        upload_id = begun.name.rsplit("/", 1)[1]
        with rows_of(server) as session:
            session.execute(
                update(UploadRow).where(UploadRow.upload_id == upload_id).values(expire_time=utc_now() - timedelta(1))
            )
        name = 'atelier_registry_collected_total{kind="upload_count"}'
        wait_until(lambda: server.metrics().get(name) == 1, timeout_seconds=30, what="the upload is collected")
    assert server.metrics()["atelier_registry_janitor_failures_total"] == 0
    server.stop()


def test_a_grace_period_that_a_call_could_outlive_is_refused(
    seaweedfs: SeaweedFS, signing_key_file: Path, tmp_path: Path
) -> None:
    options = {"gc-grace-seconds": 1199, "max-unary-seconds": 600}
    server = RegistryServer(tmp_path, seaweedfs.s3_config("grace"), signing_key_file, options)
    server.process.start()
    assert server.exit_status() == 2
    assert "--gc-grace-seconds must be twice --max-unary-seconds or more" in server.process.log_path.read_text()
