"""Uploads in several calls: resumed where they broke off, on whichever replica, and published once and whole."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from atelier.client import RegistryClient
from atelier.errors import (
    AbortedError,
    AtelierError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    PermissionDeniedError,
)
from atelier.local.process import wait_until
from atelier.pb.registry.v1 import registry_pb2 as pb
from atelier.pb.registry.v1.registry_pb2_grpc import RegistryServiceStub
from atelier.rpc.status import translated_errors
from atelier.storage.blobs import BlobStore
from services.registry.content_tables import UploadRow
from tests.harness.files import WEIGHTS, adapter_files, version
from tests.harness.registry import RegistryServer
from tests.registry.store import rows_of
from tests.registry.uploads import OWN_FOX, declared

MIB = 2**20
FILES = adapter_files(weights_bytes=20 * MIB)


@pytest.fixture(autouse=True)
def fox(registry: RegistryClient) -> pb.Adapter:
    """An adapter without versions."""
    return registry.create_adapter("fox")


@pytest.fixture
def upload(registry_stub: RegistryServiceStub) -> pb.Upload:
    """An upload of FILES."""
    return create(registry_stub)


def create(stub: RegistryServiceStub, **fields: Any) -> pb.Upload:
    """Begins an upload of FILES to the adapter `fox`."""
    usual: dict[str, Any] = {"parent": OWN_FOX, "version": version(files=declared(FILES))}
    with translated_errors():
        return stub.CreateUpload(pb.CreateUploadRequest(**{**usual, **fields}))


def messages(name: str, path: str, offset_bytes: int, pieces: Iterable[bytes]) -> Iterator[pb.WriteUploadRequest]:
    """The messages of a write."""
    yield pb.WriteUploadRequest(spec=pb.WriteUploadSpec(upload=name, path=path, offset_bytes=offset_bytes))
    for piece in pieces:
        yield pb.WriteUploadRequest(data=piece)


def cut(content: bytes) -> list[bytes]:
    """The content in pieces of a MiB."""
    return [content[start : start + MIB] for start in range(0, len(content), MIB)]


def write(
    stub: RegistryServiceStub, upload: pb.Upload, path: str, content: bytes, *, offset_bytes: int = 0
) -> pb.Upload:
    """Writes bytes of one file."""
    with translated_errors():
        return stub.WriteUpload(messages(upload.name, path, offset_bytes, cut(content)))


def write_all(stub: RegistryServiceStub, upload: pb.Upload, *, without: str = "") -> None:
    """Writes every file, or all but one."""
    for path, content in FILES.items():
        if path != without:
            write(stub, upload, path, content)


def received(stub: RegistryServiceStub, upload: pb.Upload) -> dict[str, int]:
    """How much of each file has arrived."""
    with translated_errors():
        found = stub.GetUpload(pb.GetUploadRequest(name=upload.name))
    return {file.file.path: file.received_bytes for file in found.files}


def complete(stub: RegistryServiceStub, upload: pb.Upload, **fields: Any) -> pb.Version:
    """Publishes an upload."""
    with translated_errors():
        return stub.CompleteUpload(pb.CompleteUploadRequest(name=upload.name, **fields))


def result_of(call: grpc.Future) -> pb.Version:
    """What a call that completes an upload ends with."""
    with translated_errors():
        return call.result(timeout=60)


def objects(blobs: BlobStore, upload: pb.Upload) -> list[str]:
    """What the bucket has of an upload."""
    _, tenant, _, upload_id = upload.name.split("/")
    return list(blobs.keys(f"registry/uploads/{tenant}/{upload_id}/"))


def refused(kind: type[AtelierError], reason: str, work: Callable[[], object]) -> AtelierError:
    """The error with which `work` is refused."""
    with pytest.raises(kind) as caught:
        work()
    assert caught.value.reason == reason
    return caught.value


def test_files_that_were_written_in_several_calls_are_published(
    registry: RegistryClient, registry_stub: RegistryServiceStub, registry_blobs: BlobStore, upload: pb.Upload
) -> None:
    write_all(registry_stub, upload, without=WEIGHTS)
    weights, offset_bytes = FILES[WEIGHTS], 0
    for size_bytes in (1, 9 * MIB + 1, len(weights)):
        part = weights[offset_bytes : offset_bytes + size_bytes]
        answer = write(registry_stub, upload, WEIGHTS, part, offset_bytes=offset_bytes)
        offset_bytes += len(part)
        assert answer.files == registry_stub.GetUpload(pb.GetUploadRequest(name=upload.name)).files
        assert received(registry_stub, upload)[WEIGHTS] == offset_bytes
    assert registry.adapter("fox").latest_version == ""
    assert len(objects(registry_blobs, upload)) > len(FILES)

    published = complete(registry_stub, upload)
    assert published.name.endswith("/adapters/fox/versions/1")
    assert {path: registry.download(published, path) for path in FILES} == FILES
    assert registry.publish("fox", version(), FILES).digest == published.digest, "as if it had been published at once"
    assert objects(registry_blobs, upload) == []
    refused(NotFoundError, "UPLOAD_NOT_FOUND", lambda: received(registry_stub, upload))


def test_what_arrived_before_the_client_broke_off_is_kept(
    registry: RegistryClient, registry_stub: RegistryServiceStub, registry_server: RegistryServer, upload: pb.Upload
) -> None:
    weights, sent, finished = FILES[WEIGHTS], threading.Event(), threading.Event()

    def half() -> Iterator[bytes]:
        yield from cut(weights[: 11 * MIB])
        sent.set()
        finished.wait()

    call = registry_stub.WriteUpload.future(messages(upload.name, WEIGHTS, 0, half()))
    wait_until(sent.is_set, timeout_seconds=30, what="all pieces are sent")
    wait_until(
        lambda: received(registry_stub, upload)[WEIGHTS] > 0, timeout_seconds=30, what="the first part is stored"
    )
    call.cancel()
    registry_server.wait_until_idle()
    finished.set()
    arrived = received(registry_stub, upload)[WEIGHTS]
    assert 8 * MIB <= arrived <= 11 * MIB

    write(registry_stub, upload, WEIGHTS, weights[arrived:], offset_bytes=arrived)
    write_all(registry_stub, upload, without=WEIGHTS)
    assert registry.download(complete(registry_stub, upload), WEIGHTS) == weights


def test_an_upload_goes_on_at_another_replica_when_one_is_killed(
    registry_server: RegistryServer, registry: RegistryClient, signing_key_file: Path, tenant: str, tmp_path: Path
) -> None:
    database = {"database-url": registry_server.database_url}
    first, second = (
        RegistryServer(tmp_path / name, registry_server.s3, signing_key_file, database) for name in ("one", "two")
    )
    first.start()
    weights, blocked = FILES[WEIGHTS], threading.Event()
    with first.connect(tenant) as connection:
        stub = RegistryServiceStub(connection.channel)
        upload = create(stub)

        def half() -> Iterator[bytes]:
            yield from cut(weights[: 12 * MIB])
            blocked.wait()

        call = stub.WriteUpload.future(messages(upload.name, WEIGHTS, 0, half()))
        wait_until(lambda: received(stub, upload)[WEIGHTS] > 0, timeout_seconds=30, what="the first part is stored")
        first.kill()
        assert call.exception(timeout=30) is not None
        blocked.set()

    second.start()
    with second.connect(tenant) as connection:
        stub = RegistryServiceStub(connection.channel)
        arrived = received(stub, upload)[WEIGHTS]
        assert 0 < arrived < 12 * MIB
        write(stub, upload, WEIGHTS, weights[arrived:], offset_bytes=arrived)
        write_all(stub, upload, without=WEIGHTS)
        published = complete(stub, upload)
    second.stop()
    assert registry.download(published, WEIGHTS) == weights


def test_of_two_writers_at_one_offset_one_is_told_so(
    registry: RegistryClient, registry_stub: RegistryServiceStub, registry_blobs: BlobStore, upload: pb.Upload
) -> None:
    weights, barrier = FILES[WEIGHTS], threading.Barrier(2)

    def pieces() -> Iterator[bytes]:
        first, *rest = cut(weights)
        yield first
        barrier.wait(timeout=30)  # both calls have begun, at the same offset
        yield from rest

    calls = [registry_stub.WriteUpload.future(messages(upload.name, WEIGHTS, 0, pieces())) for _ in range(2)]
    outcomes = [call.exception(timeout=60) for call in calls]
    assert outcomes.count(None) == 1, outcomes
    with pytest.raises(AbortedError) as caught, translated_errors():
        next(call for call, outcome in zip(calls, outcomes, strict=True) if outcome is not None).result()
    assert caught.value.reason == "UPLOAD_OFFSET_MISMATCH"
    assert 0 < int(caught.value.metadata["received_bytes"]) <= len(weights)
    assert received(registry_stub, upload)[WEIGHTS] == len(weights)
    assert len(objects(registry_blobs, upload)) == 3, "the loser's part is deleted"
    write_all(registry_stub, upload, without=WEIGHTS)
    assert registry.download(complete(registry_stub, upload), WEIGHTS) == weights


def test_write_at_another_offset_is_told_where_to_go_on(registry_stub: RegistryServiceStub, upload: pb.Upload) -> None:
    write(registry_stub, upload, WEIGHTS, FILES[WEIGHTS][:100])
    for offset_bytes in (0, 99, 101, -1):
        error = refused(
            AbortedError,
            "UPLOAD_OFFSET_MISMATCH",
            lambda: write(registry_stub, upload, WEIGHTS, b"more", offset_bytes=offset_bytes),  # noqa: B023
        )
        assert error.metadata["received_bytes"] == "100"
    assert received(registry_stub, upload)[WEIGHTS] == 100


def test_bytes_beyond_the_end_are_refused_and_those_before_kept(
    registry_stub: RegistryServiceStub, upload: pb.Upload
) -> None:
    content = FILES["recipe.json"]
    with pytest.raises(InvalidArgumentError) as caught, translated_errors():
        registry_stub.WriteUpload(messages(upload.name, "recipe.json", 0, [content[:3], content[3:] + b"x"]))
    assert caught.value.reason == "UPLOAD_TOO_LONG"
    assert received(registry_stub, upload)["recipe.json"] == 3
    write(registry_stub, upload, "recipe.json", content[3:], offset_bytes=3)
    assert received(registry_stub, upload)["recipe.json"] == len(content)


def test_write_names_an_upload_and_one_of_its_files(registry_stub: RegistryServiceStub, upload: pb.Upload) -> None:
    refused(NotFoundError, "FILE_NOT_FOUND", lambda: write(registry_stub, upload, "other.txt", b"x"))
    unknown = pb.Upload(name="tenants/-/uploads/u-0")
    refused(NotFoundError, "UPLOAD_NOT_FOUND", lambda: write(registry_stub, unknown, WEIGHTS, b"x"))
    with pytest.raises(InvalidArgumentError), translated_errors():
        registry_stub.WriteUpload(iter([pb.WriteUploadRequest(data=b"x")]))


def test_incomplete_upload_says_what_is_missing_and_goes_on(
    registry: RegistryClient, registry_stub: RegistryServiceStub, upload: pb.Upload
) -> None:
    write_all(registry_stub, upload, without=WEIGHTS)
    write(registry_stub, upload, WEIGHTS, FILES[WEIGHTS][:-5])
    error = refused(FailedPreconditionError, "UPLOAD_INCOMPLETE", lambda: complete(registry_stub, upload))
    assert WEIGHTS in error.message
    assert "5 bytes" in error.message
    assert "recipe.json" not in error.message
    assert registry.adapter("fox").latest_version == ""
    write(registry_stub, upload, WEIGHTS, FILES[WEIGHTS][-5:], offset_bytes=len(FILES[WEIGHTS]) - 5)
    assert complete(registry_stub, upload).name.endswith("/versions/1")


def test_wrong_file_is_dropped_and_may_be_sent_again(
    registry: RegistryClient, registry_stub: RegistryServiceStub, upload: pb.Upload
) -> None:
    wrong = bytearray(FILES[WEIGHTS])
    wrong[-1] ^= 1
    write_all(registry_stub, upload, without=WEIGHTS)
    write(registry_stub, upload, WEIGHTS, bytes(wrong))
    refused(InvalidArgumentError, "CHECKSUM_MISMATCH", lambda: complete(registry_stub, upload, validate_only=True))
    assert received(registry_stub, upload)[WEIGHTS] == len(wrong), "a check alone drops nothing"
    error = refused(InvalidArgumentError, "CHECKSUM_MISMATCH", lambda: complete(registry_stub, upload))
    assert "again" in error.message
    expected = {path: 0 if path == WEIGHTS else len(content) for path, content in FILES.items()}
    assert received(registry_stub, upload) == expected
    write(registry_stub, upload, WEIGHTS, FILES[WEIGHTS])
    assert registry.download(complete(registry_stub, upload), WEIGHTS) == FILES[WEIGHTS]


def test_part_that_the_store_has_lost_is_sent_again(
    registry: RegistryClient, registry_stub: RegistryServiceStub, registry_blobs: BlobStore, upload: pb.Upload
) -> None:
    write(registry_stub, upload, WEIGHTS, FILES[WEIGHTS])
    registry_blobs.delete(objects(registry_blobs, upload)[0])
    write_all(registry_stub, upload, without=WEIGHTS)
    with pytest.raises(AtelierError):
        complete(registry_stub, upload)
    assert received(registry_stub, upload)[WEIGHTS] == 0
    write(registry_stub, upload, WEIGHTS, FILES[WEIGHTS])
    assert registry.download(complete(registry_stub, upload), WEIGHTS) == FILES[WEIGHTS]


def test_completing_again_with_the_same_request_id_is_the_same_version(
    registry: RegistryClient, registry_stub: RegistryServiceStub, registry_server: RegistryServer, upload: pb.Upload
) -> None:
    write_all(registry_stub, upload)
    count = registry_server.metrics()["atelier_registry_published_versions_total"]
    request_id = str(uuid.uuid4())
    checked = complete(registry_stub, upload, request_id=request_id, validate_only=True)
    assert registry.adapter("fox").latest_version == ""
    published = complete(registry_stub, upload, request_id=request_id)
    assert published.digest == checked.digest
    assert complete(registry_stub, upload, request_id=request_id) == published
    assert [each.name for each in registry.versions("fox")] == [published.name]
    assert registry_server.metrics()["atelier_registry_published_versions_total"] == count + 1
    refused(NotFoundError, "UPLOAD_NOT_FOUND", lambda: complete(registry_stub, upload))


def test_upload_that_is_being_completed_is_busy_for_others(
    registry: RegistryClient, registry_stub: RegistryServiceStub, registry_server: RegistryServer, upload: pb.Upload
) -> None:
    write_all(registry_stub, upload)
    _, tenant, _, upload_id = upload.name.split("/")
    with rows_of(registry_server) as session:  # nobody can commit until its end
        session.get_one(UploadRow, (tenant, upload_id), with_for_update=True)
        calls = [registry_stub.CompleteUpload.future(pb.CompleteUploadRequest(name=upload.name)) for _ in range(2)]
        wait_until(lambda: any(call.done() for call in calls), timeout_seconds=30, what="one call has ended")
        loser, winner = sorted(calls, key=lambda call: not call.done())
        refused(AbortedError, "UPLOAD_BUSY", lambda: result_of(loser))
        assert not winner.done()
    assert result_of(winner).name.endswith("/versions/1")
    assert len(list(registry.versions("fox"))) == 1


def test_retry_of_a_call_that_goes_on_gets_its_answer(
    registry: RegistryClient, registry_stub: RegistryServiceStub, upload: pb.Upload
) -> None:
    write_all(registry_stub, upload)
    request = pb.CompleteUploadRequest(name=upload.name, request_id=str(uuid.uuid4()))
    calls = [registry_stub.CompleteUpload.future(request) for _ in range(3)]
    versions = [result_of(call) for call in calls]
    assert versions == versions[:1] * 3
    assert list(registry.versions("fox")) == versions[:1]


def test_upload_that_is_completed_twice_at_once_is_published_once(
    registry: RegistryClient, registry_stub: RegistryServiceStub, upload: pb.Upload
) -> None:
    write_all(registry_stub, upload)
    calls = [registry_stub.CompleteUpload.future(pb.CompleteUploadRequest(name=upload.name)) for _ in range(3)]
    outcomes = [call.exception(timeout=60) for call in calls]
    assert outcomes.count(None) == 1, outcomes
    assert len(list(registry.versions("fox"))) == 1


def test_creating_is_idempotent_and_checked_like_publishing(registry_stub: RegistryServiceStub) -> None:
    request_id = str(uuid.uuid4())
    assert create(registry_stub, request_id=request_id) == create(registry_stub, request_id=request_id)
    assert create(registry_stub).name != create(registry_stub).name
    validated = create(registry_stub, validate_only=True)
    refused(NotFoundError, "UPLOAD_NOT_FOUND", lambda: received(registry_stub, validated))
    refused(NotFoundError, "ADAPTER_NOT_FOUND", lambda: create(registry_stub, parent="tenants/-/adapters/owl"))
    without_weights = declared({"README.md": b"x"})
    error = refused(
        InvalidArgumentError, "WEIGHTS_MISSING", lambda: create(registry_stub, version=version(files=without_weights))
    )
    assert error.metadata["field"] == "version.files"
    unknown = version(files=declared(FILES))
    unknown.base_model.digest = "sha256:" + "cd" * 32
    error = refused(FailedPreconditionError, "BASE_MODEL_UNKNOWN", lambda: create(registry_stub, version=unknown))
    assert error.message.startswith("version.base_model.digest")


def test_deleted_upload_leaves_nothing(
    registry_stub: RegistryServiceStub, registry_blobs: BlobStore, upload: pb.Upload
) -> None:
    write_all(registry_stub, upload)
    request = pb.DeleteUploadRequest(name=upload.name, request_id=str(uuid.uuid4()))
    for _ in range(2):
        registry_stub.DeleteUpload(request)
    assert objects(registry_blobs, upload) == []
    refused(NotFoundError, "UPLOAD_NOT_FOUND", lambda: received(registry_stub, upload))
    with pytest.raises(NotFoundError), translated_errors():
        registry_stub.DeleteUpload(pb.DeleteUploadRequest(name=upload.name))


def test_upload_of_another_tenant_is_out_of_reach(registry_server: RegistryServer, upload: pb.Upload) -> None:
    with registry_server.connect("t-somebody-else") as connection:
        stub = RegistryServiceStub(connection.channel)
        own = pb.Upload(name=f"tenants/-/uploads/{upload.name.split('/')[3]}")
        for work in (received, complete):
            with pytest.raises(PermissionDeniedError):
                work(stub, upload)
            refused(NotFoundError, "UPLOAD_NOT_FOUND", lambda: work(stub, own))  # noqa: B023
        with pytest.raises(PermissionDeniedError):
            write(stub, upload, WEIGHTS, b"x")
        refused(NotFoundError, "UPLOAD_NOT_FOUND", lambda: write(stub, own, WEIGHTS, b"x"))
        with pytest.raises(PermissionDeniedError), translated_errors():
            stub.DeleteUpload(pb.DeleteUploadRequest(name=upload.name))


def test_expired_upload_is_gone(registry_server: RegistryServer, signing_key_file: Path, tmp_path: Path) -> None:
    hasty = RegistryServer(tmp_path, registry_server.s3, signing_key_file, {"upload-lifetime-seconds": 2})
    hasty.start()
    with hasty.connect("t-hasty") as connection:
        stub = RegistryServiceStub(connection.channel)
        RegistryClient(connection).create_adapter("fox")
        upload = create(stub)
        assert upload.expire_time.seconds - upload.create_time.seconds in (1, 2, 3)
        write(stub, upload, "recipe.json", FILES["recipe.json"])

        def is_gone() -> bool:
            try:
                received(stub, upload)
            except NotFoundError:
                return True
            return False

        wait_until(is_gone, timeout_seconds=30, what="the upload expires")
        refused(NotFoundError, "UPLOAD_NOT_FOUND", lambda: write(stub, upload, "README.md", FILES["README.md"]))
        refused(NotFoundError, "UPLOAD_NOT_FOUND", lambda: complete(stub, upload))
    hasty.stop()
