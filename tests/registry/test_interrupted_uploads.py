"""Uploads that do not reach their end: nothing is visible, nothing stays, and the next one works."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from atelier.client import RegistryClient
from atelier.errors import DeadlineExceededError, InvalidArgumentError, UnavailableError
from atelier.local.process import wait_until
from atelier.local.seaweedfs import SeaweedFS
from atelier.pb.registry.v1 import registry_pb2 as pb
from atelier.pb.registry.v1.registry_pb2_grpc import RegistryServiceStub
from atelier.rpc.status import translated_errors
from atelier.storage.blobs import BlobStore
from services.registry.storing import BLOBS_PREFIX, MAX_STREAMS
from tests.harness.files import WEIGHTS, adapter_files, version
from tests.harness.registry import BUCKET, RegistryServer
from tests.registry.store import objects_begun
from tests.registry.uploads import declared, upload

FILES = adapter_files(weights_bytes=24_000_000)
"""Several parts of a multipart upload."""


@pytest.fixture
def fox(registry: RegistryClient) -> pb.Adapter:
    """An adapter without versions."""
    return registry.create_adapter("fox")


def half_of(files: dict[str, bytes]) -> list[bytes]:
    """The bytes of the files up to the middle of the last one."""
    stream = b"".join(files.values())[: -len(files[WEIGHTS]) // 2]
    return [stream[start : start + 2**20] for start in range(0, len(stream), 2**20)]


def test_upload_that_ends_early_is_refused(
    registry: RegistryClient,
    registry_stub: RegistryServiceStub,
    registry_server: RegistryServer,
    registry_blobs: BlobStore,
    fox: pb.Adapter,
) -> None:
    objects = set(registry_blobs.keys(BLOBS_PREFIX))
    for pieces in ([], half_of(FILES)):
        with pytest.raises(InvalidArgumentError) as caught, translated_errors():
            registry_stub.PublishVersion(upload(version(files=declared(FILES)), pieces))
        assert caught.value.reason == "UPLOAD_INCOMPLETE"
    assert registry.adapter("fox") == fox
    assert set(registry_blobs.keys(BLOBS_PREFIX)) == objects
    assert objects_begun(registry_server.s3) == []
    assert registry.publish("fox", version(), FILES).name.endswith("/versions/1")


def test_upload_that_its_client_cancels_leaves_nothing(
    registry: RegistryClient,
    registry_stub: RegistryServiceStub,
    registry_server: RegistryServer,
    registry_blobs: BlobStore,
    fox: pb.Adapter,
) -> None:
    objects = set(registry_blobs.keys(BLOBS_PREFIX))
    cancelled = threading.Event()
    request_id = str(uuid.uuid4())

    def messages() -> Iterator[pb.PublishVersionRequest]:
        yield from upload(version(files=declared(FILES)), half_of(FILES), request_id=request_id)
        cancelled.wait()

    call = registry_stub.PublishVersion.future(messages())
    wait_until(lambda: set(registry_blobs.keys(BLOBS_PREFIX)) != objects, timeout_seconds=30, what="a file is stored")
    call.cancel()
    cancelled.set()
    registry_server.wait_until_idle()
    assert set(registry_blobs.keys(BLOBS_PREFIX)) == objects
    assert objects_begun(registry_server.s3) == []
    assert registry.adapter("fox") == fox
    assert list(registry.versions("fox")) == []
    assert registry.publish("fox", version(), FILES, request_id=request_id).name.endswith("/versions/1")


def test_a_large_file_with_a_wrong_digest_never_becomes_an_object(
    registry: RegistryClient,
    registry_stub: RegistryServiceStub,
    registry_server: RegistryServer,
    registry_blobs: BlobStore,
    fox: pb.Adapter,
) -> None:
    objects = set(registry_blobs.keys(BLOBS_PREFIX))
    files = declared(FILES)
    files[-1].sha256 = "0" * 64
    stream = b"".join(FILES.values())
    pieces = (stream[start : start + 2**20] for start in range(0, len(stream), 2**20))
    with pytest.raises(InvalidArgumentError) as caught, translated_errors():
        registry_stub.PublishVersion(upload(version(files=files), pieces))
    assert caught.value.reason == "CHECKSUM_MISMATCH"
    assert set(registry_blobs.keys(BLOBS_PREFIX)) == objects
    assert objects_begun(registry_server.s3) == []
    assert registry.adapter("fox") == fox


def test_client_that_sends_nothing_loses_its_turn_and_keeps_what_it_has_written(
    seaweedfs: SeaweedFS, registry_blobs: BlobStore, signing_key_file: Path, tmp_path: Path
) -> None:
    server = RegistryServer(tmp_path, seaweedfs.s3_config(BUCKET), signing_key_file, {"upload-idle-seconds": 1})
    server.start()
    objects, done = set(registry_blobs.keys(BLOBS_PREFIX)), threading.Event()

    def publishing() -> Iterator[pb.PublishVersionRequest]:
        yield from upload(version(files=declared(FILES)), half_of(FILES))
        done.wait()

    with server.connect("acme") as connection:
        registry, stub = RegistryClient(connection), RegistryServiceStub(connection.channel)
        registry.create_adapter("fox")
        begun = registry.create_upload("fox", version(), FILES)

        def writing() -> Iterator[pb.WriteUploadRequest]:
            yield pb.WriteUploadRequest(spec=pb.WriteUploadSpec(upload=begun.name, path=WEIGHTS))
            yield pb.WriteUploadRequest(data=FILES[WEIGHTS][:3])
            while not done.wait(0.1):
                yield pb.WriteUploadRequest(data=b"")  # nothing is no bytes

        for call, messages in ((stub.PublishVersion, publishing()), (stub.WriteUpload, writing())):
            with pytest.raises(DeadlineExceededError) as caught, translated_errors():
                call(messages, timeout=30)
            assert caught.value.reason == "UPLOAD_IDLE"
        done.set()
        written = stub.GetUpload(pb.GetUploadRequest(name=begun.name)).files
        assert {each.file.path: each.received_bytes for each in written if each.received_bytes} == {WEIGHTS: 3}
        assert list(registry.versions("fox")) == []
    server.stop()
    assert set(registry_blobs.keys(BLOBS_PREFIX)) == objects


def test_silent_clients_do_not_keep_others_waiting(
    registry: RegistryClient, registry_stub: RegistryServiceStub, registry_server: RegistryServer, fox: pb.Adapter
) -> None:
    done = threading.Event()

    def silent() -> Iterator[pb.PublishVersionRequest]:
        yield from upload(version(files=declared(FILES)))
        done.wait()

    before = registry_server.uploads()
    calls = [registry_stub.PublishVersion.future(silent()) for _ in range(MAX_STREAMS)]
    wait_until(
        lambda: registry_server.uploads() == before + MAX_STREAMS, timeout_seconds=30, what="all streams have begun"
    )
    registry.publish("fox", version(), FILES)
    assert not any(call.done() for call in calls)
    for call in calls:
        call.cancel()
    done.set()


@pytest.fixture
def fragile_store(tmp_path: Path) -> Iterator[SeaweedFS]:
    """An S3 server of the test's own, to stop and start."""
    server = SeaweedFS(tmp_path / "seaweedfs")
    server.start()
    yield server
    server.stop()


def test_without_its_store_the_registry_says_when_to_retry_and_then_goes_on(
    fragile_store: SeaweedFS, signing_key_file: Path, tmp_path: Path
) -> None:
    server = RegistryServer(tmp_path, fragile_store.s3_config(BUCKET), signing_key_file)
    server.start()
    with server.connect("acme") as connection:
        registry = RegistryClient(connection)
        registry.create_adapter("fox")
        kept = registry.publish("fox", version(), FILES)
        fragile_store.stop()
        request_id = str(uuid.uuid4())
        with pytest.raises(UnavailableError) as refused:
            registry.publish("fox", version(), adapter_files(1), request_id=request_id)
        with pytest.raises(UnavailableError) as unread:
            registry.download(kept, WEIGHTS)
        for error in (refused.value, unread.value):
            assert error.reason == "OBJECT_STORE_UNAVAILABLE"
            assert error.retry_after_seconds
        assert list(registry.versions("fox")) == [kept]
        fragile_store.start()
        again = registry.publish("fox", version(), adapter_files(1), request_id=request_id)
        assert again.name.endswith("/versions/2")
        assert registry.download(kept, WEIGHTS) == FILES[WEIGHTS]
    server.stop()


def test_registry_that_is_killed_in_an_upload_comes_back_without_it(
    seaweedfs: SeaweedFS, signing_key_file: Path, tmp_path: Path
) -> None:
    server = RegistryServer(tmp_path, seaweedfs.s3_config(BUCKET), signing_key_file)
    server.start()
    done = threading.Event()

    def messages() -> Iterator[pb.PublishVersionRequest]:
        yield from upload(version(files=declared(FILES)), half_of(FILES))
        done.wait()

    with server.connect("acme") as connection:
        registry = RegistryClient(connection)
        created = registry.create_adapter("fox")
        call = RegistryServiceStub(connection.channel).PublishVersion.future(messages())
        server.wait_for_upload()
        server.kill()
        assert call.code() == grpc.StatusCode.UNAVAILABLE
        done.set()
        server.start()
        assert registry.adapter("fox") == created
        assert registry.publish("fox", version(), FILES).name.endswith("/versions/1")
    server.stop()
