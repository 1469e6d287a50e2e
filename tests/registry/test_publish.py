"""Publishing: what comes out is what went in, once, under its digest."""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import select

from atelier.client import RegistryClient
from atelier.errors import DataLossError, InvalidArgumentError, NotFoundError
from atelier.pb.registry.v1 import registry_pb2 as pb
from atelier.pb.registry.v1.registry_pb2_grpc import RegistryServiceStub
from atelier.rpc.scopes import PUBLISHER
from atelier.rpc.status import translated_errors
from atelier.storage.blobs import BlobStore
from services.registry.storing import BLOBS_PREFIX
from services.registry.tables import VersionRow
from tests.harness.files import WEIGHTS, adapter_files, version
from tests.harness.registry import RegistryServer
from tests.registry.store import key_of, rows_of, sha256_of
from tests.registry.uploads import OWN_FOX, declared, upload


@pytest.fixture(autouse=True)
def fox(registry: RegistryClient) -> pb.Adapter:
    """An adapter without versions."""
    return registry.create_adapter("fox")


def test_published_files_come_back_byte_for_byte(registry: RegistryClient, tenant: str, tmp_path: Path) -> None:
    files = adapter_files(weights_bytes=5_000_000)
    published = registry.publish("fox", version(), files)
    assert published.name == f"tenants/{tenant}/adapters/fox/versions/1"
    assert [file.path for file in published.files] == sorted(files)
    assert dict(published.metrics) == {"clip_i": 0.875, "clip_t": 0.25}
    assert registry.resolve("fox") == published
    registry.pull(published, tmp_path)
    assert {path: (tmp_path / path).read_bytes() for path in files} == files


def test_job_is_named_by_its_own_credential(registry_server: RegistryServer, tenant: str) -> None:
    with registry_server.connect(tenant, PUBLISHER, subject="jobs/j1") as connection:
        published = RegistryClient(connection).publish("fox", version(source_job="tenants/-/jobs/j1"), adapter_files())
    assert published.source_job == f"tenants/{tenant}/jobs/j1"


def test_each_version_gets_the_next_number_and_becomes_the_latest(registry: RegistryClient, fox: pb.Adapter) -> None:
    for seed in (1, 2, 3):
        registry.publish("fox", version(), adapter_files(seed))
    newest_first = [each.name.rsplit("/", 1)[1] for each in registry.versions("fox")]
    assert newest_first == ["3", "2", "1"]
    adapter = registry.adapter("fox")
    assert adapter.latest_version.endswith("/versions/3")
    assert adapter.etag != fox.etag


def test_versions_come_in_pages(registry: RegistryClient, registry_stub: RegistryServiceStub) -> None:
    for seed in (1, 2, 3):
        registry.publish("fox", version(), adapter_files(seed))
    first = registry_stub.ListVersions(pb.ListVersionsRequest(parent=OWN_FOX, page_size=2))
    second = registry_stub.ListVersions(
        pb.ListVersionsRequest(parent=OWN_FOX, page_size=2, page_token=first.next_page_token)
    )
    numbers = [each.name[-1] for page in (first, second) for each in page.versions]
    assert numbers == ["3", "2", "1"]
    assert not second.next_page_token


def test_digest_is_the_hash_of_the_manifest_which_lists_every_file(
    registry: RegistryClient, registry_server: RegistryServer
) -> None:
    files = adapter_files()
    published = registry.publish("fox", version(trigger_words=["sks", "fox"]), files)
    manifest = {
        "format": "atelier.adapter/v1",
        "base_model": {"model": "emoji-sd", "digest": published.base_model.digest},
        "method": "dreambooth-lora",
        "instance_prompt": "a photo of a sks fox",
        "files": [
            {"path": path, "size_bytes": len(files[path]), "sha256": hashlib.sha256(files[path]).hexdigest()}
            for path in sorted(files)
        ],
        "metrics": {"clip_i": 0.875, "clip_t": 0.25},
        "source_job": "",
        "trigger_words": ["fox", "sks"],
    }
    canonical = json.dumps(manifest, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    sha256 = hashlib.sha256(canonical).hexdigest()
    assert published.digest == f"sha256:{sha256}"
    assert list(published.trigger_words) == ["fox", "sks"]
    with rows_of(registry_server) as session:
        kept = session.scalars(select(VersionRow.manifest).where(VersionRow.digest == published.digest)).all()
    assert kept == [canonical.decode()]


def test_same_content_has_the_same_digest_in_whatever_order_it_came(
    registry: RegistryClient, registry_stub: RegistryServiceStub
) -> None:
    files = adapter_files()
    published = registry.publish("fox", version(), files)
    backwards = dict(reversed(files.items()))
    again = registry_stub.PublishVersion(upload(version(files=declared(backwards)), backwards.values()))
    assert again.digest == published.digest
    assert again.files == published.files
    assert again.name != published.name


def test_one_content_is_one_object_however_many_versions_have_it(
    registry: RegistryClient, registry_server: RegistryServer, registry_blobs: BlobStore, tenant: str
) -> None:
    files = adapter_files(int(tenant[2:], 16))
    first = registry.publish("fox", version(), {**files, "copy.json": files["recipe.json"]})
    with registry_server.connect(f"{tenant}-2") as connection:
        other = RegistryClient(connection)
        other.create_adapter("fox")
        second = other.publish("fox", version(), files)
        assert other.download(second, WEIGHTS) == files[WEIGHTS]
    assert list(registry_blobs.keys(f"{BLOBS_PREFIX}{sha256_of(files[WEIGHTS])[:2]}/{sha256_of(files[WEIGHTS])}/")) == [
        key_of(registry_server, files[WEIGHTS])
    ]
    assert registry.download(first, "copy.json") == registry.download(first, "recipe.json") == files["recipe.json"]


def test_changed_metric_changes_the_digest(registry: RegistryClient) -> None:
    one = registry.publish("fox", version(metrics={"clip_i": 0.5}), adapter_files())
    other = registry.publish("fox", version(metrics={"clip_i": 0.25}), adapter_files())
    assert one.digest != other.digest


def test_pieces_may_be_cut_anywhere(registry: RegistryClient, registry_stub: RegistryServiceStub) -> None:
    files = adapter_files()
    stream = b"".join(files.values())
    pieces = [b"", stream[:1], stream[1:4000], b"", stream[4000:]]
    published = registry_stub.PublishVersion(upload(version(files=declared(files)), pieces))
    assert registry.download(published, WEIGHTS) == files[WEIGHTS]


def test_repeated_request_id_answers_with_the_first_version(
    registry: RegistryClient, registry_stub: RegistryServiceStub
) -> None:
    files, request_id = adapter_files(weights_bytes=3_000_000), str(uuid.uuid4())
    first = registry.publish("fox", version(), files, request_id=request_id)
    assert registry.publish("fox", version(), files, request_id=request_id) == first
    assert len(list(registry.versions("fox"))) == 1


def test_request_id_of_another_version_is_refused(registry: RegistryClient) -> None:
    request_id = str(uuid.uuid4())
    registry.publish("fox", version(), adapter_files(), request_id=request_id)
    with pytest.raises(InvalidArgumentError) as caught:
        registry.publish("fox", version(method="lora"), adapter_files(), request_id=request_id)
    assert caught.value.reason == "REQUEST_ID_REUSED"
    assert len(list(registry.versions("fox"))) == 1


def test_one_request_sent_by_many_at_once_publishes_once(registry: RegistryClient) -> None:
    request_id = str(uuid.uuid4())

    def publish(_: int) -> str:
        return registry.publish("fox", version(), adapter_files(), request_id=request_id).name

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(publish, range(8)))) == 1
    assert len(list(registry.versions("fox"))) == 1


def test_versions_published_at_once_get_different_numbers(registry: RegistryClient) -> None:
    def publish(seed: int) -> pb.Version:
        return registry.publish("fox", version(), adapter_files(seed))

    with ThreadPoolExecutor(8) as pool:
        published = list(pool.map(publish, range(8)))
    assert sorted(int(each.name.rsplit("/", 1)[1]) for each in published) == list(range(1, 9))
    for seed, each in enumerate(published):
        assert registry.download(each, WEIGHTS) == adapter_files(seed)[WEIGHTS]


def test_validate_only_needs_no_data_and_changes_nothing(
    registry: RegistryClient, registry_stub: RegistryServiceStub, fox: pb.Adapter
) -> None:
    files = adapter_files()
    checked = registry_stub.PublishVersion(upload(version(files=declared(files)), validate_only=True))
    assert list(registry.versions("fox")) == []
    assert registry.adapter("fox") == fox
    assert registry.publish("fox", version(), files).digest == checked.digest


def test_version_of_no_adapter_is_not_found_before_any_data(registry: RegistryClient) -> None:
    with pytest.raises(NotFoundError) as caught:
        registry.publish("cat", version(), adapter_files())
    assert caught.value.reason == "ADAPTER_NOT_FOUND"


def test_file_that_a_version_does_not_have_is_not_found(
    registry: RegistryClient, registry_stub: RegistryServiceStub
) -> None:
    published = registry.publish("fox", version(), adapter_files())
    for path in ("nothing.json", "../README.md", "", "samples"):
        with pytest.raises(NotFoundError) as caught, translated_errors():
            list(registry_stub.DownloadFile(pb.DownloadFileRequest(version=published.name, path=path)))
        assert caught.value.reason == "FILE_NOT_FOUND"


@pytest.mark.parametrize("damage", [lambda content: content[:-1], lambda content: bytes(len(content))])
def test_damaged_content_in_the_store_is_data_loss(
    registry: RegistryClient,
    registry_server: RegistryServer,
    registry_blobs: BlobStore,
    damage: Callable[[bytes], bytes],
    tenant: str,
) -> None:
    files = adapter_files(int(tenant[2:], 16))
    published = registry.publish("fox", version(), files)
    key = key_of(registry_server, files[WEIGHTS])
    registry_blobs.put(key, damage(files[WEIGHTS]))
    with pytest.raises(DataLossError):
        registry.download(published, WEIGHTS)
    registry_blobs.delete(key)
    with pytest.raises(DataLossError) as caught:
        registry.download(published, WEIGHTS)
    assert caught.value.reason == "CONTENT_LOST"


def test_download_that_its_reader_gives_up_ends_at_the_server(
    registry: RegistryClient, registry_stub: RegistryServiceStub, registry_server: RegistryServer
) -> None:
    published = registry.publish("fox", version(), adapter_files(weights_bytes=20_000_000))
    stream = registry_stub.DownloadFile(pb.DownloadFileRequest(version=published.name, path=WEIGHTS))
    assert len(next(stream).data) <= 1024 * 1024
    stream.cancel()
    registry_server.wait_until_idle()
