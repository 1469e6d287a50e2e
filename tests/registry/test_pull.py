"""Files on disk: versions are published from them and pulled into them, piece by piece."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from atelier.client import RegistryClient
from atelier.errors import DataLossError, FailedPreconditionError
from atelier.pb.common.v1.common_pb2 import File
from atelier.pb.registry.v1 import registry_pb2 as pb
from atelier.storage.blobs import BlobStore
from tests.harness.files import WEIGHTS, adapter_files, version


@pytest.fixture(autouse=True)
def fox(registry: RegistryClient) -> pb.Adapter:
    """An adapter without versions."""
    return registry.create_adapter("fox")


def test_a_pull_tells_of_its_pieces_and_leaves_the_files_alone(registry: RegistryClient, tmp_path: Path) -> None:
    files = adapter_files(weights_bytes=5_000_000)
    published = registry.publish("fox", version(), files)
    pieces: list[int] = []
    written = registry.pull(published, tmp_path, on_received=pieces.append)
    assert [path.relative_to(tmp_path).as_posix() for path in written] == sorted(files)
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == sorted(written)
    assert sum(pieces) == sum(map(len, files.values()))
    assert len(pieces) > len(files), "a large file is several pieces"


def test_a_pull_takes_the_place_of_an_older_one(registry: RegistryClient, tmp_path: Path) -> None:
    files = adapter_files(2, weights_bytes=2_000_000)
    published = registry.publish("fox", version(), files)
    (tmp_path / WEIGHTS).write_bytes(b"older, and of another length")
    (tmp_path / f"{WEIGHTS}.part").write_bytes(b"of a pull that was broken off" * 100_000)
    registry.pull(published, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {path.partition("/")[0] for path in files}
    assert {path: (tmp_path / path).read_bytes() for path in files} == files


def test_a_file_that_does_not_arrive_whole_never_has_its_name(
    registry: RegistryClient, registry_blobs: BlobStore, tenant: str, tmp_path: Path
) -> None:
    files = adapter_files(int(tenant[2:], 16), weights_bytes=3_000_000)
    published = registry.publish("fox", version(), files)
    sha256 = hashlib.sha256(files[WEIGHTS]).hexdigest()
    (key,) = registry_blobs.keys(f"registry/blobs/{sha256[:2]}/{sha256}/")
    registry_blobs.put(key, files[WEIGHTS][:-1])
    with pytest.raises(DataLossError):
        registry.pull(published, tmp_path)
    assert not (tmp_path / WEIGHTS).exists()


@pytest.mark.parametrize("path", ["../README.md", "/tmp/README.md", "samples/../../README.md", ".README.md"])
def test_a_path_that_leads_out_of_the_folder_is_not_followed(
    registry: RegistryClient, tmp_path: Path, path: str
) -> None:
    lying = pb.Version(files=[File(path=path, size_bytes=1, sha256="0" * 64)])
    with pytest.raises(DataLossError, match="nothing is written"):
        registry.pull(lying, tmp_path / "inside")
    assert not list(tmp_path.iterdir())


def test_nothing_is_written_through_a_symbolic_link(registry: RegistryClient, tmp_path: Path) -> None:
    files = adapter_files()
    published = registry.publish("fox", version(), {**files, "samples/1.json": b"{}"})
    elsewhere, folder = tmp_path / "elsewhere", tmp_path / "folder"
    for each in (elsewhere, folder):
        each.mkdir()
    (elsewhere / "file").write_bytes(b"somebody's")
    for name in (WEIGHTS, f"{WEIGHTS}.part"):
        (folder / name).symlink_to(elsewhere / "file")
    (folder / "samples").symlink_to(elsewhere)
    with pytest.raises(FailedPreconditionError) as caught:
        registry.pull(published, folder)
    assert caught.value.reason == "SYMBOLIC_LINK"
    (folder / "samples").unlink()
    registry.pull(published, folder)
    assert (folder / WEIGHTS).read_bytes() == files[WEIGHTS]
    assert not (folder / WEIGHTS).is_symlink()
    assert {path.name: path.read_bytes() for path in elsewhere.iterdir()} == {"file": b"somebody's"}


def test_files_on_disk_are_the_same_version_as_their_bytes(registry: RegistryClient, tmp_path: Path) -> None:
    files = adapter_files(weights_bytes=3_000_000)
    for path, content in files.items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_bytes(content)
    of_bytes = registry.publish("fox", version(), files)
    of_files = registry.publish("fox", version(), {path: tmp_path / path for path in files})
    assert of_files.digest == of_bytes.digest
    assert of_files.files == of_bytes.files
    assert of_files.name != of_bytes.name
    assert registry.download(of_files, WEIGHTS) == files[WEIGHTS]
