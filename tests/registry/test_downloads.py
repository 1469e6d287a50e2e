"""Downloads of files and of ranges: what arrives, what is refused, and what one that ends early leaves behind."""

from __future__ import annotations

import hashlib

import psutil
import pytest

from atelier.client import RegistryClient
from atelier.errors import DataLossError, InvalidArgumentError, NotFoundError
from atelier.local.process import wait_until
from atelier.pb.registry.v1 import registry_pb2 as pb
from atelier.pb.registry.v1.registry_pb2_grpc import RegistryServiceStub
from atelier.rpc.status import translated_errors
from atelier.storage.blobs import BlobStore
from services.registry.content_tables import BlobRow
from tests.harness.files import WEIGHTS, adapter_files, version
from tests.harness.registry import RegistryServer
from tests.registry.store import rows_of, sha256_of

MIB = 2**20


@pytest.fixture
def files(tenant: str) -> dict[str, bytes]:
    """An adapter whose weights nobody else has published, of a good 3 MiB."""
    return adapter_files(int(tenant[2:], 16), weights_bytes=3 * MIB + 12345)


@pytest.fixture
def fox(registry: RegistryClient, files: dict[str, bytes]) -> pb.Version:
    """A version."""
    registry.create_adapter("fox")
    return registry.publish("fox", version(), files)


def received(stub: RegistryServiceStub, request: pb.DownloadFileRequest) -> list[bytes]:
    """The pieces of a download."""
    with translated_errors():
        return [response.data for response in stub.DownloadFile(request)]


def stored_key(blobs: BlobStore, content: bytes) -> str:
    """Where the bucket has a content."""
    sha256 = hashlib.sha256(content).hexdigest()
    (key,) = blobs.keys(f"registry/blobs/{sha256[:2]}/{sha256}/")
    return key


@pytest.mark.parametrize(
    ("offset_bytes", "limit_bytes"),
    [(0, 0), (0, 1), (1, 0), (MIB - 1, 2), (MIB, MIB), (12345, 2 * MIB + 1), (5, 2**62)],
)
def test_range_is_exactly_those_bytes(
    registry_stub: RegistryServiceStub,
    files: dict[str, bytes],
    fox: pb.Version,
    offset_bytes: int,
    limit_bytes: int,
) -> None:
    request = pb.DownloadFileRequest(version=fox.name, path=WEIGHTS, offset_bytes=offset_bytes, limit_bytes=limit_bytes)
    pieces = received(registry_stub, request)
    end = offset_bytes + limit_bytes if limit_bytes else None
    assert b"".join(pieces) == files[WEIGHTS][offset_bytes:end]
    assert all(0 < len(piece) <= MIB for piece in pieces)


def test_range_at_the_end_is_empty(
    registry_stub: RegistryServiceStub, files: dict[str, bytes], fox: pb.Version
) -> None:
    size_bytes = len(files[WEIGHTS])
    last = pb.DownloadFileRequest(version=fox.name, path=WEIGHTS, offset_bytes=size_bytes - 1)
    assert received(registry_stub, last) == [files[WEIGHTS][-1:]]
    end = pb.DownloadFileRequest(version=fox.name, path=WEIGHTS, offset_bytes=size_bytes)
    assert received(registry_stub, end) == []


def test_range_outside_of_the_file_is_refused(
    registry_stub: RegistryServiceStub, files: dict[str, bytes], fox: pb.Version
) -> None:
    wrong = [("offset_bytes", -1), ("offset_bytes", len(files[WEIGHTS]) + 1), ("limit_bytes", -1)]
    for field, value in wrong:
        request = pb.DownloadFileRequest(version=fox.name, path=WEIGHTS, **{field: value})
        with pytest.raises(InvalidArgumentError) as caught:
            received(registry_stub, request)
        assert caught.value.metadata["field"] == field


def test_file_that_the_version_has_not_is_not_found(registry_stub: RegistryServiceStub, fox: pb.Version) -> None:
    with pytest.raises(NotFoundError) as caught:
        received(registry_stub, pb.DownloadFileRequest(version=fox.name, path="other.txt"))
    assert caught.value.reason == "FILE_NOT_FOUND"


def test_content_that_the_store_has_lost_is_data_loss(
    registry_stub: RegistryServiceStub,
    registry_server: RegistryServer,
    registry_blobs: BlobStore,
    files: dict[str, bytes],
    fox: pb.Version,
) -> None:
    key = stored_key(registry_blobs, files[WEIGHTS])
    whole = pb.DownloadFileRequest(version=fox.name, path=WEIGHTS)
    tail = pb.DownloadFileRequest(version=fox.name, path=WEIGHTS, offset_bytes=2 * MIB)

    def refused() -> None:
        for request in (whole, tail):
            with pytest.raises(DataLossError) as caught:
                received(registry_stub, request)
            assert caught.value.reason == "CONTENT_LOST"

    registry_blobs.put(key, files[WEIGHTS][:-1])
    refused()
    registry_blobs.put(key, files[WEIGHTS][:MIB])
    refused()
    registry_blobs.delete(key)
    refused()
    registry_blobs.put(key, files[WEIGHTS])
    assert b"".join(received(registry_stub, whole)) == files[WEIGHTS]
    with rows_of(registry_server) as session:
        assert session.get_one(BlobRow, sha256_of(files[WEIGHTS])).rot_time is not None, "until it is read whole"


def test_lost_content_that_nobody_has_noticed_comes_back_when_it_is_published_again(
    registry: RegistryClient, registry_blobs: BlobStore, files: dict[str, bytes], fox: pb.Version
) -> None:
    key = stored_key(registry_blobs, files[WEIGHTS])
    registry_blobs.delete(key)
    second = registry.publish("fox", version(), files)
    new_key = stored_key(registry_blobs, files[WEIGHTS])
    assert new_key != key
    registry_blobs.put(new_key, files[WEIGHTS][:-1])
    third = registry.publish("fox", version(), files)
    registry_blobs.delete(new_key)
    for each in (fox, second, third):
        assert registry.download(each, WEIGHTS) == files[WEIGHTS]
    registry.publish("fox", version(), files)
    stored_key(registry_blobs, files[WEIGHTS])  # what is sound stays alone


def test_cancelled_downloads_give_their_connections_back(
    registry: RegistryClient, registry_stub: RegistryServiceStub, registry_server: RegistryServer, tenant: str
) -> None:
    registry.create_adapter("fox")
    large = adapter_files(int(tenant[2:], 16), weights_bytes=32 * MIB)
    fox = registry.publish("fox", version(), large)
    s3_port = int(registry_server.s3.endpoint.rpartition(":")[2])
    process = psutil.Process(registry_server.process.pid)

    def connections() -> int:
        found = process.net_connections("tcp")
        return sum(1 for each in found if each.raddr and each.raddr.port == s3_port and each.status == "ESTABLISHED")

    before = connections()
    calls = [registry_stub.DownloadFile(pb.DownloadFileRequest(version=fox.name, path=WEIGHTS)) for _ in range(24)]
    for call in calls:
        assert len(next(call).data) > 0
    assert connections() >= len(calls), "each holds a connection while its client does not read on"
    for call in calls:
        call.cancel()
    registry_server.wait_until_idle()
    wait_until(lambda: connections() <= before, timeout_seconds=30, what="the connections to S3 are given back")
    assert registry.download(fox, WEIGHTS) == large[WEIGHTS]
