"""Bytes in S3, through the common subset of the API that every S3 server has.

Content-addressed keys are computed here from the bytes themselves; a client never names a key. Reads of such
blobs are checked against their digest by whoever uses them (`verified`), because a store may lie or lose.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import urllib3
from minio import Minio
from minio.error import MinioException, S3Error

from atelier.errors import DataLossError, NotFoundError, UnavailableError

READ_BYTES = 1024 * 1024
_MISSING = ("NoSuchKey", "NoSuchObject", "NoSuchBucket")
CONNECT_SECONDS = 3.0
READ_SECONDS = 30.0


@dataclass(frozen=True, kw_only=True, slots=True)
class S3Config:
    """Where the bucket is and who may use it."""

    endpoint: str
    """`host:port`, without scheme."""
    bucket: str
    access_key: str
    secret_key: str = field(repr=False)
    secure: bool = False
    region: str = "us-east-1"


class BlobStore:
    """One bucket, created at the first write."""

    def __init__(self, config: S3Config) -> None:
        self._bucket = config.bucket
        self._has_bucket = False
        timeout = urllib3.Timeout(connect=CONNECT_SECONDS, read=READ_SECONDS)
        pool = urllib3.PoolManager(timeout=timeout, retries=urllib3.Retry(total=1, backoff_factor=0.2), maxsize=16)
        self._client = Minio(
            config.endpoint,
            access_key=config.access_key,
            secret_key=config.secret_key,
            secure=config.secure,
            region=config.region,
            http_client=pool,
        )

    def put(self, key: str, content: bytes) -> None:
        """Stores bytes under a key, over what was there."""
        with _translated():
            self._create_bucket()
            self._client.put_object(self._bucket, key, io.BytesIO(content), len(content))

    def put_content(self, path: Path, sha256: str) -> None:
        """Stores a file under its content's key, unless the store has it at that length already."""
        key = content_key(sha256)
        if self.size_bytes(key) != path.stat().st_size:
            with _translated():
                self._create_bucket()
                self._client.fput_object(self._bucket, key, str(path))

    def size_bytes(self, key: str) -> int | None:
        """Length of what is under a key; None when nothing is."""
        with _translated():
            try:
                return self._client.stat_object(self._bucket, key).size
            except S3Error as error:
                if error.code in _MISSING:
                    return None
                raise

    def get(self, key: str) -> bytes:
        """All bytes under a key. NotFoundError when nothing is there."""
        return b"".join(self.stream(key))

    def stream(self, key: str) -> Iterator[bytes]:
        """The bytes under a key, in pieces of at most READ_BYTES."""
        with _translated():
            response = self._client.get_object(self._bucket, key)
            try:
                yield from response.stream(READ_BYTES)
            finally:
                response.close()
                response.release_conn()

    def keys(self, prefix: str) -> Iterator[str]:
        """Every key that starts with `prefix`."""
        with _translated():
            for entry in self._client.list_objects(self._bucket, prefix, recursive=True):
                yield str(entry.object_name)

    def delete(self, key: str) -> None:
        """Deletes what is under a key, if anything."""
        with _translated():
            self._client.remove_object(self._bucket, key)

    def _create_bucket(self) -> None:
        """At the first write, and not when a service starts: what needs no S3 must not wait for it."""
        if self._has_bucket:
            return
        try:
            self._client.make_bucket(self._bucket)
        except S3Error as error:
            if error.code not in ("BucketAlreadyOwnedByYou", "BucketAlreadyExists"):
                raise
        self._has_bucket = True


def content_key(sha256: str) -> str:
    """The key of bytes with this digest."""
    return f"sha256/{sha256[:2]}/{sha256}"


def verified(content: bytes, sha256: str, what: str) -> bytes:
    """`content`, when it has the digest that it is known by. DataLossError otherwise."""
    if hashlib.sha256(content).hexdigest() != sha256:
        raise DataLossError(f"the stored bytes of {what} do not have the SHA-256 {sha256}")
    return content


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except S3Error as error:
        if error.code in _MISSING:
            raise NotFoundError("the object is not in the store", reason="OBJECT_NOT_FOUND") from error
        raise _unavailable() from error
    except (urllib3.exceptions.HTTPError, MinioException, OSError) as error:
        raise _unavailable() from error


def _unavailable() -> UnavailableError:
    return UnavailableError("the object store does not answer; retry later", reason="OBJECT_STORE_UNAVAILABLE")
