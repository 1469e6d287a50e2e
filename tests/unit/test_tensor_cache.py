"""Tensors for later jobs: in memory up to a limit, and in a real S3 that may lie or be away."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import replace

import pytest
import safetensors.torch
import torch

from atelier.local.process import free_ports
from atelier.local.seaweedfs import SeaweedFS
from atelier.storage.blobs import BlobStore
from services.trainer.training.cache import SharedTensors, TensorCache
from tests.harness.registry import BUCKET


def tensor(value: int) -> torch.Tensor:
    """Of 40 bytes."""
    return torch.full((10,), float(value))


def held(cache: TensorCache, keys: str) -> list[float | None]:
    """What the cache has under each key."""
    found = [cache.get(key) for key in keys]
    return [None if tensor is None else tensor[0].item() for tensor in found]


def test_the_least_recently_used_goes_first() -> None:
    cache = TensorCache(max_bytes=100)
    cache.put("a", tensor(0))
    cache.put("b", tensor(1))
    cache.get("a")
    cache.put("c", tensor(2))
    assert held(cache, "abc") == [0, None, 2]


def test_what_is_larger_than_the_cache_is_not_kept_and_drives_nothing_out() -> None:
    cache = TensorCache(max_bytes=100)
    cache.put("a", tensor(0))
    cache.put("b", torch.zeros(26))
    assert held(cache, "ab") == [0, None]


def test_a_key_counts_once() -> None:
    cache = TensorCache(max_bytes=100)
    for _ in range(5):
        cache.put("a", tensor(0))
    cache.put("b", tensor(1))
    assert held(cache, "ab") == [0, 1]


@pytest.fixture
def blobs(seaweedfs: SeaweedFS) -> BlobStore:
    """A bucket of a real S3 server."""
    return BlobStore(seaweedfs.s3_config(BUCKET))


@pytest.fixture
def folder() -> str:
    """One that nobody has used."""
    return f"class-images-{uuid.uuid4().hex}"


def worker(blobs: BlobStore, folder: str) -> SharedTensors:
    """The store as a worker has it whose memory is empty."""
    return SharedTensors(blobs, folder, max_bytes=1000)


def test_one_worker_finds_what_another_has_put(blobs: BlobStore, folder: str) -> None:
    images = torch.arange(6, dtype=torch.float32).view(2, 3).T  # not contiguous
    assert worker(blobs, folder).get("a") is None
    worker(blobs, folder).put("a", images)
    other = worker(blobs, folder)
    found = other.get("a")
    assert found is not None
    assert torch.equal(found, images)
    assert worker(blobs, f"{folder}-other").get("a") is None
    blobs.delete(f"{folder}/a.safetensors")
    assert other.get("a") is found, "from memory"


@pytest.mark.parametrize(
    "damage",
    [
        lambda contents: contents[:-1],
        lambda contents: contents[:4],
        lambda contents: b"",
        lambda contents: b"<html>" * 100,
        lambda contents: safetensors.torch.save({"other": torch.ones(1)}),
    ],
    ids=["cut off", "cut off in its header", "empty", "no safetensors", "of other tensors"],
)
def test_what_is_not_whole_counts_as_not_there_and_is_put_again(
    damage: Callable[[bytes], bytes], blobs: BlobStore, folder: str
) -> None:
    worker(blobs, folder).put("a", tensor(1))
    path = f"{folder}/a.safetensors"
    whole = blobs.get(path)
    blobs.put(path, damage(whole))
    again = worker(blobs, folder)
    assert again.get("a") is None
    again.put("a", tensor(1))
    assert blobs.get(path) == whole


def test_a_store_that_is_away_is_no_error(seaweedfs: SeaweedFS, folder: str) -> None:
    (port,) = free_ports(1)
    away = BlobStore(replace(seaweedfs.s3_config(BUCKET), endpoint=f"127.0.0.1:{port}"))
    own = worker(away, folder)
    assert own.get("a") is None
    own.put("a", tensor(1))
    found = own.get("a")
    assert found is not None
    assert torch.equal(found, tensor(1)), "from memory"
    assert worker(away, folder).get("a") is None
