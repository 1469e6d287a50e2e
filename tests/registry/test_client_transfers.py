"""How the SDK brings files into the registry and out of it: in pieces, past interruptions, past the registry."""

from __future__ import annotations

import hashlib
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import urllib3

from atelier.client import Connection, RegistryClient
from atelier.errors import NotFoundError, UnavailableError
from atelier.local.process import wait_until
from atelier.local.seaweedfs import SeaweedFS
from atelier.pb.registry.v1 import registry_pb2 as pb
from atelier.pb.registry.v1.registry_pb2_grpc import RegistryServiceStub
from tests.harness.files import WEIGHTS, adapter_files, version
from tests.harness.proxy import Proxy
from tests.harness.registry import BUCKET, RegistryServer

MIB = 2**20
LARGE = adapter_files(weights_bytes=64 * MIB)


def on_disk(files: dict[str, bytes], folder: Path) -> dict[str, bytes | Path]:
    """The files, the weights as a file on disk."""
    (folder / "weights").write_bytes(files[WEIGHTS])
    return {**files, WEIGHTS: folder / "weights"}


def test_an_upload_goes_on_where_a_killed_registry_stopped(
    seaweedfs: SeaweedFS, signing_key_file: Path, tmp_path: Path
) -> None:
    server = RegistryServer(tmp_path, seaweedfs.s3_config(BUCKET), signing_key_file)
    server.start()
    sent_bytes: list[int] = []
    killed = threading.Event()

    def count(size_bytes: int) -> None:
        sent_bytes.append(size_bytes)
        if not killed.is_set() and sum(sent_bytes) >= 40 * MIB:
            server.kill()
            killed.set()

    with server.connect("acme") as connection, ThreadPoolExecutor() as threads:
        registry = RegistryClient(connection)
        registry.create_adapter("fox")
        upload = threads.submit(registry.upload, "fox", version(), on_disk(LARGE, tmp_path), on_sent=count)
        assert killed.wait(timeout=60)
        server.start()
        published = upload.result()
        assert hashlib.sha256(registry.download(published, WEIGHTS)).digest() == hashlib.sha256(LARGE[WEIGHTS]).digest()
    size_bytes = sum(map(len, LARGE.values()))
    assert 40 * MIB + size_bytes - 8 * MIB > sum(sent_bytes) > size_bytes
    server.stop()


def test_a_download_goes_on_where_a_killed_registry_stopped(
    seaweedfs: SeaweedFS, signing_key_file: Path, tmp_path: Path
) -> None:
    server = RegistryServer(tmp_path, seaweedfs.s3_config(BUCKET), signing_key_file)
    server.start()
    received_bytes: list[int] = []
    killed, going_on = threading.Event(), threading.Event()

    def count(size_bytes: int) -> None:
        received_bytes.append(size_bytes)
        if not killed.is_set() and sum(received_bytes) >= 10 * MIB:
            server.kill()
            killed.set()
            assert going_on.wait(timeout=60)

    with server.connect("acme") as connection, ThreadPoolExecutor() as threads:
        registry = RegistryClient(connection)
        registry.create_adapter("fox")
        published = registry.publish("fox", version(), LARGE)
        pull = threads.submit(registry.pull, published, tmp_path / "out", on_received=count)
        assert killed.wait(timeout=60)
        server.start()
        going_on.set()
        pull.result()
    assert (tmp_path / "out" / WEIGHTS).read_bytes() == LARGE[WEIGHTS]
    assert sum(received_bytes) == sum(map(len, LARGE.values())), "no byte came twice"
    server.stop()


def test_an_upload_is_resumed_by_its_name(registry: RegistryClient) -> None:
    registry.create_adapter("fox")
    files = adapter_files(weights_bytes=MIB)
    begun = registry.create_upload("fox", version(), files)
    with pytest.raises(KeyError):
        registry.resume_upload(begun, {path: files[path] for path in files if path != WEIGHTS})
    sent_bytes: list[int] = []
    published = registry.resume_upload(registry.get_upload(begun.name), files, on_sent=sent_bytes.append)
    assert sum(sent_bytes) == sum(map(len, files.values())) - len(files["README.md"])
    assert registry.download(published, WEIGHTS) == files[WEIGHTS]
    with pytest.raises(NotFoundError):
        registry.get_upload(begun.name)


def test_an_upload_that_is_given_up_is_gone(registry: RegistryClient) -> None:
    registry.create_adapter("fox")
    begun = registry.create_upload("fox", version(), adapter_files())
    registry.delete_upload(begun.name)
    with pytest.raises(NotFoundError):
        registry.resume_upload(begun, adapter_files())


def test_files_go_to_the_object_store_itself(registry: RegistryClient, tmp_path: Path) -> None:
    registry.create_adapter("fox")
    files = adapter_files(weights_bytes=3 * MIB)
    sent_bytes: list[int] = []
    published = registry.upload_signed("fox", version(), on_disk(files, tmp_path), on_sent=sent_bytes.append)
    assert sorted(sent_bytes) == sorted(map(len, files.values()))
    assert {path: registry.download(published, path) for path in files} == files


def test_signed_requests_that_are_about_to_end_are_replaced(registry_server: RegistryServer, tenant: str) -> None:
    class Late(RegistryClient):
        """One for whom much time goes by after an upload has begun."""

        def create_upload(self, *args: Any, **fields: Any) -> pb.Upload:
            upload = super().create_upload(*args, **fields)
            for each in upload.files:
                each.put.url += "0"  # the store takes nothing at this one
                each.put.expire_time.FromSeconds(int(time.time()) + 60)
            return upload

    files = adapter_files()
    with registry_server.connect(tenant) as connection:
        registry = Late(connection)
        registry.create_adapter("fox")
        published = registry.upload_signed("fox", version(), files)
        assert registry.download(published, WEIGHTS) == files[WEIGHTS]


def test_a_completion_whose_answer_is_lost_is_answered_when_it_is_asked_again(
    registry_server: RegistryServer, registry: RegistryClient, tenant: str
) -> None:
    registry.create_adapter("fox")
    with (
        Proxy(registry_server.port) as proxy,
        ThreadPoolExecutor() as threads,
        Connection(proxy.address, registry_server.token(tenant)) as connection,
    ):
        distant = RegistryClient(connection)
        begun = distant.create_upload("fox", version(), adapter_files())
        for file in begun.files:
            spec = pb.WriteUploadSpec(upload=begun.name, path=file.file.path)
            data = pb.WriteUploadRequest(data=adapter_files()[file.file.path])
            RegistryServiceStub(connection.channel).WriteUpload(iter([pb.WriteUploadRequest(spec=spec), data]))
        proxy.lose_answers()
        completion = threads.submit(distant.complete_upload, begun.name)
        wait_until(
            lambda: bool(registry.adapter("fox").latest_version), timeout_seconds=30, what="the version is there"
        )
        proxy.break_off(turned_away=3)  # longer than the channel itself tries
        published = completion.result(timeout=60)
    assert list(registry.versions("fox")) == [published]


def test_a_store_that_takes_nothing_is_told_of(registry: RegistryClient, tmp_path: Path) -> None:
    registry.create_adapter("fox")
    contents = on_disk(adapter_files(), tmp_path)

    class Changing(dict[str, bytes | Path]):
        """Contents that have changed by the time that they are sent."""

        def __getitem__(self, path: str) -> bytes | Path:
            content = super().__getitem__(path)
            if path == WEIGHTS and isinstance(content, Path):
                self[path] = content.read_bytes()[::-1]
            return content

    with pytest.raises(UnavailableError) as caught:
        registry.upload_signed("fox", version(), Changing(contents))
    assert caught.value.reason == "STORE_UNAVAILABLE"
    assert list(registry.versions("fox")) == []


@pytest.fixture
def fox(registry: RegistryClient) -> pb.Version:
    """A version of the adapter `fox`."""
    registry.create_adapter("fox")
    return registry.publish("fox", version(), adapter_files())


def test_a_range_of_a_file_is_downloaded(registry: RegistryClient, fox: pb.Version) -> None:
    weights = adapter_files()[WEIGHTS]
    assert registry.download_range(fox, WEIGHTS, offset_bytes=10, limit_bytes=100) == weights[10:110]
    assert registry.download_range(fox, WEIGHTS, offset_bytes=10) == weights[10:]


def test_a_signed_download_comes_from_the_object_store(registry: RegistryClient, fox: pb.Version) -> None:
    signed = registry.sign_download(fox, WEIGHTS, lifetime_seconds=60)
    response = urllib3.request("GET", signed.url, headers=dict(signed.headers))
    assert response.data == adapter_files()[WEIGHTS]


def test_an_export_is_written_file_by_file(registry: RegistryClient, fox: pb.Version, tmp_path: Path) -> None:
    received_bytes: list[int] = []
    paths = registry.export_version(
        fox, pb.ExportVersionRequest.FORMAT_DIFFUSERS, tmp_path / "out", on_received=received_bytes.append
    )
    assert [(path.name, path.read_bytes()) for path in paths] == [(WEIGHTS, adapter_files()[WEIGHTS])]
    assert sum(received_bytes) == len(adapter_files()[WEIGHTS])
    assert [path.name for path in (tmp_path / "out").iterdir()] == [WEIGHTS]


def test_purged_things_are_gone(registry: RegistryClient, fox: pb.Version) -> None:
    assert registry.delete_version("fox", "1").HasField("delete_time")
    assert registry.purge_deleted("fox", dry_run=True).versions == [fox.name]
    assert registry.version("fox", "1").HasField("delete_time")
    assert registry.purge_deleted("fox").versions == [fox.name]
    with pytest.raises(NotFoundError):
        registry.version("fox", "1")
