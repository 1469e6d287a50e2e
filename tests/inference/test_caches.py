"""The caches of the inference service: on disk and in memory."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

from services.inference.disk_cache import DiskCache
from services.inference.lru import LruCache

DIGESTS = ["sha256:" + f"{index}" * 64 for index in range(4)]


def sha256(contents: bytes) -> str:
    return hashlib.sha256(contents).hexdigest()


def test_disk_keeps_files_over_restarts_and_forgets_by_last_use(tmp_path: Path) -> None:
    contents = [bytes([index]) * 100 for index in range(4)]
    cache = DiskCache(tmp_path, max_bytes=250)
    cache.write(DIGESTS[0], contents[0])
    cache.write(DIGESTS[1], contents[1])
    cache = DiskCache(tmp_path, max_bytes=250)
    assert cache.read(DIGESTS[0], sha256(contents[0])) == contents[0]
    cache.write(DIGESTS[2], contents[2])
    assert cache.read(DIGESTS[1], sha256(contents[1])) is None
    assert cache.read(DIGESTS[0], sha256(contents[0])) == contents[0]


def test_disk_deletes_what_does_not_agree_with_its_digest(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, max_bytes=250)
    cache.write(DIGESTS[0], b"right")
    (file,) = tmp_path.glob("*/*")
    file.write_bytes(b"wrong")
    assert cache.read(DIGESTS[0], sha256(b"right")) is None
    assert not list(tmp_path.iterdir())


def test_disk_clears_unfinished_files_and_keeps_none_that_is_too_large(tmp_path: Path) -> None:
    (tmp_path / "unfinished-x").mkdir()
    (tmp_path / "unfinished-x" / "weights.safetensors").write_bytes(b"half")
    cache = DiskCache(tmp_path, max_bytes=250)
    cache.write(DIGESTS[0], b"x" * 251)
    assert not list(tmp_path.iterdir())


def test_disk_leaves_alone_what_is_not_its_own(tmp_path: Path) -> None:
    (tmp_path / "lost+found").mkdir(mode=0o000)
    (tmp_path / "notes.txt").write_text("x" * 500)
    cache = DiskCache(tmp_path, max_bytes=250)
    for index, digest in enumerate(DIGESTS):
        cache.write(digest, bytes([index]) * 100)
    assert [cache.read(digest, sha256(bytes([i]) * 100)) is None for i, digest in enumerate(DIGESTS)] == [True] * 2 + [
        False
    ] * 2
    assert {"lost+found", "notes.txt"} < {entry.name for entry in tmp_path.iterdir()}


def test_a_disk_that_takes_nothing_costs_the_caching_alone(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    cache = DiskCache(folder, max_bytes=250)
    file_in_the_way = folder / DIGESTS[0].removeprefix("sha256:")
    file_in_the_way.write_text("no folder")
    cache.write(DIGESTS[0], b"right")
    assert cache.read(DIGESTS[0], sha256(b"right")) is None
    assert list(folder.iterdir()) == [file_in_the_way]
    shutil.rmtree(folder)
    cache.write(DIGESTS[1], b"right")
    assert cache.read(DIGESTS[1], sha256(b"right")) is None


def test_memory_forgets_by_last_use_and_cost() -> None:
    cache: LruCache[str] = LruCache(10, len)
    cache.put("a", "1234")
    cache.put("b", "1234")
    assert cache.get("a") == "1234"
    cache.put("c", "123456")
    assert [cache.get(key) for key in "abc"] == ["1234", None, "123456"]
    cache.put("c", "1")
    cache.put("d", "12345678901")
    assert [cache.get(key) for key in "acd"] == [None, None, None]
