"""Scrubbing: lost and changed bytes are found and named; everything is read in its turn."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest
from sqlalchemy import select

from atelier.cli.main import run
from atelier.client import MaintenanceClient, RegistryClient
from atelier.errors import DataLossError, InvalidArgumentError
from atelier.local.seaweedfs import SeaweedFS
from atelier.pb.registry.v1 import maintenance_pb2 as pb
from atelier.rpc.scopes import OPERATOR
from atelier.storage.blobs import BlobStore
from services.registry.content_tables import BlobRow
from tests.harness.files import WEIGHTS, adapter_files, version
from tests.harness.registry import BUCKET, OPERATOR_TENANT, RegistryServer
from tests.registry.store import key_of, rows_of, sha256_of

FILES = [adapter_files(seed) for seed in range(3)]
CONTENTS = {content for files in FILES for content in files.values()}


@pytest.fixture
def server(seaweedfs: SeaweedFS, signing_key_file: Path, tmp_path: Path) -> Iterator[RegistryServer]:
    """A registry of the test's own, whose adapter `fox` has a version of each of FILES."""
    server = RegistryServer(tmp_path, seaweedfs.s3_config(BUCKET), signing_key_file)
    server.start()
    with server.connect("acme") as connection:
        registry = RegistryClient(connection)
        registry.create_adapter("fox")
        for files in FILES:
            registry.publish("fox", version(), files)
    yield server
    server.stop()


@pytest.fixture
def maintenance(server: RegistryServer) -> Iterator[MaintenanceClient]:
    """The operator."""
    with server.connect(OPERATOR_TENANT, OPERATOR) as connection:
        yield MaintenanceClient(connection)


def scrub(client: MaintenanceClient, **limits: int) -> tuple[pb.ScrubProgress, list[pb.Rot]]:
    """The last progress of a scrub, and what it found."""
    responses = list(client.scrub(**limits))
    assert responses[-1].WhichOneof("content") == "progress"
    return responses[-1].progress, [each.rot for each in responses if each.WhichOneof("content") == "rot"]


def read_times(server: RegistryServer) -> dict[str, datetime]:
    """When each content was last found sound, by SHA-256."""
    with rows_of(server) as session:
        return {row.sha256: row.scrub_time for row in session.scalars(select(BlobRow))}


def test_a_sound_store_is_read_once_and_whole(server: RegistryServer, maintenance: MaintenanceClient) -> None:
    before = read_times(server)
    progress, rot = scrub(maintenance)
    assert (progress.blob_count, progress.rot_count, rot) == (len(CONTENTS), 0, [])
    assert progress.blob_bytes == sum(map(len, CONTENTS))
    after = read_times(server)
    assert all(after[sha256] > before[sha256] for sha256 in before)
    assert server.metrics()["atelier_registry_scrubbed_bytes_total"] == progress.blob_bytes


def test_lost_and_changed_contents_are_found_with_the_versions_that_have_them(
    server: RegistryServer, maintenance: MaintenanceClient
) -> None:
    lost, changed, shared = FILES[0][WEIGHTS], FILES[1][WEIGHTS], FILES[0]["README.md"]
    blobs = BlobStore(server.s3)
    blobs.delete(key_of(server, lost))
    for content in (changed, shared):
        blobs.put(key_of(server, content), content[:-1] + bytes([content[-1] ^ 1]))
    before = read_times(server)
    progress, rot = scrub(maintenance)
    assert (progress.blob_count, progress.rot_count) == (len(CONTENTS), 3)
    found = {each.sha256: (each.kind, list(each.versions)) for each in rot}
    name = "tenants/acme/adapters/fox/versions/"
    assert found == {
        sha256_of(lost): (pb.Rot.KIND_MISSING, [f"{name}1"]),
        sha256_of(changed): (pb.Rot.KIND_CHANGED, [f"{name}2"]),
        sha256_of(shared): (pb.Rot.KIND_CHANGED, [f"{name}1", f"{name}2", f"{name}3"]),
    }
    unread = {sha256 for sha256, time in read_times(server).items() if time == before[sha256]}
    assert unread == found.keys(), "only what is sound counts as read"
    blobs.put(key_of(server, lost), lost)
    assert {each.sha256 for each in scrub(maintenance)[1]} == found.keys() - {sha256_of(lost)}


def test_publishing_the_bytes_of_a_rotten_content_again_heals_it_everywhere(
    server: RegistryServer, maintenance: MaintenanceClient
) -> None:
    blobs, weights = BlobStore(server.s3), FILES[0][WEIGHTS]
    blobs.delete(key_of(server, weights))
    with server.connect("acme") as connection, server.connect("other") as others:
        registry, other = RegistryClient(connection), RegistryClient(others)
        other.create_adapter("fox")
        old = next(each for each in registry.versions("fox") if each.name.endswith("/1"))
        assert scrub(maintenance)[0].rot_count == 1
        with pytest.raises(DataLossError):
            registry.download(old, WEIGHTS)
        other.publish("fox", version(), FILES[0])
        assert registry.download(old, WEIGHTS) == weights
    assert scrub(maintenance)[1] == []


def test_scrubs_with_a_limit_get_round_to_everything(server: RegistryServer, maintenance: MaintenanceClient) -> None:
    before = read_times(server)
    limit = max(map(len, CONTENTS))
    rounds = 0
    while not all(time > before[sha256] for sha256, time in read_times(server).items()):
        progress, _ = scrub(maintenance, limit_bytes=limit)
        assert 0 < progress.blob_bytes <= limit
        rounds += 1
        assert rounds <= len(CONTENTS)
    assert rounds >= sum(map(len, CONTENTS)) / limit
    assert scrub(maintenance, limit_bytes=1)[0].blob_count == 0


def test_a_negative_limit_is_refused(maintenance: MaintenanceClient) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        scrub(maintenance, limit_bytes=-1)
    assert caught.value.violations[0].field == "limit_bytes"


def test_the_command_exits_with_1_when_something_is_not_sound(
    server: RegistryServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ATELIER_REGISTRY", server.address)
    monkeypatch.setenv("ATELIER_TOKEN", server.token(OPERATOR_TENANT, OPERATOR))
    assert run(["registry", "scrub"]) == 0
    assert f"read {len(CONTENTS)} contents" in capsys.readouterr().out
    BlobStore(server.s3).delete(key_of(server, FILES[0][WEIGHTS]))
    assert run(["registry", "scrub", "--json"]) == 1
    assert sha256_of(FILES[0][WEIGHTS]) in capsys.readouterr().out
    assert run(["registry", "gc", "--dry-run"]) == 0
