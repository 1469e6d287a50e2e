"""Adapter files on disk, by the digest of their version, up to a number of bytes.

A file is there whole or not at all. It is checked against its SHA-256 at every read; one that does not agree is
deleted. The folder survives restarts and belongs to one process; what else lies in it is left alone. A disk that is
full or fails costs the caching and nothing else.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import tempfile
import threading
from pathlib import Path

import structlog

_FILE_NAME = "weights.safetensors"
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_ENTRY = re.compile(r"[0-9a-f]{64}")
_UNFINISHED = "unfinished-"
_log = structlog.get_logger("atelier.inference")


class DiskCache:
    """Files that are forgotten by last use.

    Args:
        folder: made when missing.
        max_bytes: of all files together.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for leftover in folder.glob(f"{_UNFINISHED}*"):
            shutil.rmtree(leftover, ignore_errors=True)

    def read(self, digest: str, sha256: str) -> bytes | None:
        """The bytes, when they are there and have this SHA-256."""
        entry = self._entry(digest)
        with self._lock:
            try:
                contents = (entry / _FILE_NAME).read_bytes()
            except OSError:
                return None
            if hashlib.sha256(contents).hexdigest() == sha256:
                with contextlib.suppress(OSError):
                    os.utime(entry)
                return contents
            _log.warning("a cached file is corrupt; it is fetched again", digest=digest)
            shutil.rmtree(entry, ignore_errors=True)
            return None

    def write(self, digest: str, contents: bytes) -> None:
        """Keeps a file and forgets others until all fit."""
        if len(contents) > self._max_bytes:
            return
        with self._lock:
            try:
                self._place(self._entry(digest), contents)
                self._forget_oldest()
            except OSError as error:
                _log.warning("an adapter could not be cached on disk", digest=digest, cause=repr(error))

    def _place(self, entry: Path, contents: bytes) -> None:
        unfinished = Path(tempfile.mkdtemp(prefix=_UNFINISHED, dir=self._folder))
        try:
            (unfinished / _FILE_NAME).write_bytes(contents)
            shutil.rmtree(entry, ignore_errors=True)
            unfinished.rename(entry)
        except OSError:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise

    def _entry(self, digest: str) -> Path:
        assert _DIGEST.fullmatch(digest), "a digest is `sha256:` and 64 hexadecimal digits"
        return self._folder / digest.removeprefix("sha256:")

    def _forget_oldest(self) -> None:
        entries = [entry for entry in self._folder.iterdir() if _ENTRY.fullmatch(entry.name) and entry.is_dir()]
        entries.sort(key=lambda entry: entry.stat().st_mtime_ns)
        sizes = {entry: sum(file.stat().st_size for file in entry.iterdir()) for entry in entries}
        total = sum(sizes.values())
        for entry in entries:
            if total <= self._max_bytes:
                return
            shutil.rmtree(entry, ignore_errors=True)
            total -= sizes[entry]
