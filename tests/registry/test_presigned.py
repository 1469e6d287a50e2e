"""Signed requests: files go to and come from the object store itself, and it refuses all that was not signed."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

import pytest
import urllib3
from google.protobuf.duration_pb2 import Duration

from atelier.client import RegistryClient
from atelier.errors import FailedPreconditionError, InvalidArgumentError
from atelier.local.process import wait_until
from atelier.pb.registry.v1 import registry_pb2 as pb
from atelier.pb.registry.v1.registry_pb2_grpc import RegistryServiceStub
from atelier.rpc.status import translated_errors
from atelier.storage.blobs import BlobStore
from tests.harness.files import WEIGHTS, adapter_files, version
from tests.harness.registry import RegistryServer
from tests.registry.uploads import OWN_FOX, declared

FILES = adapter_files(weights_bytes=3_000_000)


@pytest.fixture(autouse=True)
def fox(registry: RegistryClient) -> pb.Adapter:
    """An adapter without versions."""
    return registry.create_adapter("fox")


@pytest.fixture
def upload(registry_stub: RegistryServiceStub) -> pb.Upload:
    """An upload of FILES straight to the object store."""
    request = pb.CreateUploadRequest(parent=OWN_FOX, version=version(files=declared(FILES)), sign_put_requests=True)
    return registry_stub.CreateUpload(request)


def send(method: str, signed: pb.SignedRequest, body: bytes | None = None, **headers: str) -> urllib3.BaseHTTPResponse:
    """Sends a signed request; `headers` (with _ for -) replace the signed ones."""
    every = {**signed.headers, **{name.replace("_", "-"): value for name, value in headers.items()}}
    return urllib3.request(method, signed.url, body=body, headers=every, retries=False, timeout=30)


def put_of(upload: pb.Upload, path: str) -> pb.SignedRequest:
    """The signed PUT of one file."""
    return next(each.put for each in upload.files if each.file.path == path)


def checksum(content: bytes) -> str:
    """The SHA-256 as S3's header has it."""
    return base64.b64encode(hashlib.sha256(content).digest()).decode()


def complete(stub: RegistryServiceStub, upload: pb.Upload) -> pb.Version:
    """Publishes an upload."""
    with translated_errors():
        return stub.CompleteUpload(pb.CompleteUploadRequest(name=upload.name))


def sign(stub: RegistryServiceStub, published: pb.Version, path: str, seconds: int | None = None) -> pb.SignedRequest:
    """A signed GET of one file."""
    lifetime = None if seconds is None else Duration(seconds=seconds)
    with translated_errors():
        return stub.SignDownload(pb.SignDownloadRequest(version=published.name, path=path, lifetime=lifetime)).get


def test_files_that_were_put_into_the_store_are_published(
    registry: RegistryClient, registry_stub: RegistryServiceStub, registry_blobs: BlobStore, upload: pb.Upload
) -> None:
    for path, content in FILES.items():
        assert send("PUT", put_of(upload, path), content).status == 200
    published = complete(registry_stub, upload)
    assert {path: registry.download(published, path) for path in FILES} == FILES
    assert list(registry_blobs.keys(f"registry/uploads/{upload.name.split('/')[1]}/")) == []


def test_some_files_may_come_by_put_and_others_by_write(
    registry: RegistryClient, registry_stub: RegistryServiceStub, upload: pb.Upload
) -> None:
    for path, content in FILES.items():
        if path != WEIGHTS:
            spec = pb.WriteUploadSpec(upload=upload.name, path=path)
            registry_stub.WriteUpload(iter([pb.WriteUploadRequest(spec=spec), pb.WriteUploadRequest(data=content)]))
    with pytest.raises(FailedPreconditionError) as caught:
        complete(registry_stub, upload)
    assert caught.value.reason == "UPLOAD_INCOMPLETE"
    fresh = registry_stub.GetUpload(pb.GetUploadRequest(name=upload.name))
    assert send("PUT", put_of(fresh, WEIGHTS), FILES[WEIGHTS]).status == 200
    assert registry.download(complete(registry_stub, upload), WEIGHTS) == FILES[WEIGHTS]


def test_the_store_takes_nothing_but_what_was_signed(registry_stub: RegistryServiceStub, upload: pb.Upload) -> None:
    put, right = put_of(upload, WEIGHTS), FILES[WEIGHTS]
    other = right[:-1] + bytes([right[-1] ^ 1])
    assert put.headers == {"content-length": str(len(right)), "x-amz-checksum-sha256": checksum(right)}
    assert send("PUT", put, other).status == 400, "bytes with another SHA-256 than the header says"
    assert send("PUT", put, other, x_amz_checksum_sha256=checksum(other)).status == 403
    assert send("PUT", put, right + b"x", content_length=str(len(right) + 1)).status == 403
    assert send("PUT", put, right[:-1], content_length=str(len(right) - 1)).status == 403
    elsewhere = pb.SignedRequest(url=put.url.replace("/files/", "/parts/"), headers=put.headers)
    assert send("PUT", elsewhere, right).status == 403
    for method in ("GET", "DELETE"):
        assert urllib3.request(method, put.url, headers={"x-amz-checksum-sha256": checksum(right)}).status == 403
    with pytest.raises(FailedPreconditionError) as caught:
        complete(registry_stub, upload)
    assert caught.value.reason == "UPLOAD_INCOMPLETE"


def test_what_a_store_should_have_refused_is_refused_here(
    registry: RegistryClient, registry_stub: RegistryServiceStub, registry_blobs: BlobStore, upload: pb.Upload
) -> None:
    for path, content in FILES.items():
        assert send("PUT", put_of(upload, path), content).status == 200
    key = put_of(upload, WEIGHTS).url.partition("?")[0].split("/", 4)[4]
    wrong = FILES[WEIGHTS][:-1] + bytes([FILES[WEIGHTS][-1] ^ 1])
    registry_blobs.put(key, wrong)
    with pytest.raises(InvalidArgumentError) as caught:
        complete(registry_stub, upload)
    assert caught.value.reason == "CHECKSUM_MISMATCH"
    registry_blobs.put(key, FILES[WEIGHTS] + b"more")
    with pytest.raises(FailedPreconditionError) as incomplete:
        complete(registry_stub, upload)
    assert incomplete.value.reason == "UPLOAD_INCOMPLETE"
    assert registry.adapter("fox").latest_version == ""
    assert send("PUT", put_of(upload, WEIGHTS), FILES[WEIGHTS]).status == 200
    assert registry.download(complete(registry_stub, upload), WEIGHTS) == FILES[WEIGHTS]


def test_upload_that_did_not_ask_for_signed_requests_has_none(registry_stub: RegistryServiceStub) -> None:
    request = pb.CreateUploadRequest(parent=OWN_FOX, version=version(files=declared(FILES)))
    assert not any(each.HasField("put") for each in registry_stub.CreateUpload(request).files)


def test_signed_download_is_the_file_or_a_range_of_it(
    registry: RegistryClient, registry_stub: RegistryServiceStub
) -> None:
    published = registry.publish("fox", version(), FILES)
    signed = sign(registry_stub, published, WEIGHTS)
    assert send("GET", signed).data == FILES[WEIGHTS]
    part = send("GET", signed, range="bytes=1000-1999")
    assert (part.status, part.data) == (206, FILES[WEIGHTS][1000:2000])
    assert send("PUT", signed, b"x").status == 403
    assert send("DELETE", signed).status == 403
    unsigned = pb.SignedRequest(url=signed.url.partition("?")[0])
    assert send("GET", unsigned).status == 403
    other = pb.SignedRequest(url=signed.url.replace("registry/blobs/", "registry/uploads/"))
    assert send("GET", other).status == 403


def test_signed_download_ends_with_its_lifetime(registry: RegistryClient, registry_stub: RegistryServiceStub) -> None:
    published = registry.publish("fox", version(), FILES)
    short = sign(registry_stub, published, WEIGHTS, 2)
    assert send("GET", short).status == 200
    wait_until(lambda: send("GET", short).status == 403, timeout_seconds=30, what="the URL expires")
    for seconds in (0, -1, 3601):
        with pytest.raises(InvalidArgumentError) as caught:
            sign(registry_stub, published, WEIGHTS, seconds)
        assert caught.value.metadata["field"] == "lifetime"


def test_urls_are_for_the_endpoint_that_clients_use_and_are_not_logged(
    registry_server: RegistryServer, signing_key_file: Path, tenant: str, tmp_path: Path
) -> None:
    public = f"http://localhost:{registry_server.s3.endpoint.rpartition(':')[2]}"
    server = RegistryServer(tmp_path, registry_server.s3, signing_key_file, {"s3-public-endpoint": public})
    server.start()
    with server.connect(tenant) as connection:
        registry, stub = RegistryClient(connection), RegistryServiceStub(connection.channel)
        registry.create_adapter("fox")
        request = pb.CreateUploadRequest(parent=OWN_FOX, version=version(files=declared(FILES)), sign_put_requests=True)
        upload = stub.CreateUpload(request)
        for path, content in FILES.items():
            put = put_of(upload, path)
            assert put.url.startswith(f"{public}/")
            assert send("PUT", put, content).status == 200
        signed = sign(stub, complete(stub, upload), WEIGHTS)
        assert signed.url.startswith(f"{public}/")
        assert send("GET", signed).data == FILES[WEIGHTS]
    server.stop()
    (log,) = tmp_path.glob("*.log")
    assert "CreateUpload" in log.read_text()
    assert "X-Amz" not in log.read_text()
