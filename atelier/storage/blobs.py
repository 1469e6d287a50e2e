"""Bytes in S3, through the common subset of the API that every S3 server has.

Keys are the services' own; no client names one. Nothing is hashed here: whoever stores bytes under their SHA-256, or
reads them, compares it (`verified`), because a store may lie or lose.
"""

from __future__ import annotations

import hashlib
import io
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Protocol

import urllib3
from minio import Minio
from minio.datatypes import Part
from minio.deleteobjects import DeleteObject
from minio.error import MinioException, S3Error

from atelier.errors import AtelierError, DataLossError, NotFoundError, UnavailableError

READ_BYTES = 1024 * 1024
PART_BYTES = 8 * 1024 * 1024
"""Of a multipart upload."""
PARTS_IN_FLIGHT = 2
"""Of one object, on their way to the store while the next one is read."""
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


class Reader(Protocol):
    """Where an object's bytes come from."""

    def read(self, size_bytes: int, /) -> bytes:
        """Exactly so many of the next bytes, all in one piece."""
        ...


@dataclass(frozen=True, slots=True)
class BlobEntry:
    """An object in a listing."""

    key: str
    size_bytes: int
    modified_time: datetime


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
            self.create_bucket()
            self._client.put_object(self._bucket, key, io.BytesIO(content), len(content))

    def put_stream(self, key: str, reader: Reader, size_bytes: int) -> None:
        """Stores what a reader gives, with at most PARTS_IN_FLIGHT parts of it and the next one in memory.

        An exception of the reader's passes through; then nothing is stored, and what was there before stays.
        """
        if size_bytes <= PART_BYTES:
            self.put(key, reader.read(size_bytes))
            return
        # minio's own way to send parts while more is read leaves threads behind when the reader raises.
        with _translated():
            self.create_bucket()
            upload_id = self._client._create_multipart_upload(self._bucket, key, {})
        try:
            parts = self._send_parts(key, upload_id, reader, size_bytes)
            with _translated():
                self._client._complete_multipart_upload(self._bucket, key, upload_id, parts)
        except BaseException:
            with suppress(AtelierError), _translated():  # what cannot be given up now, `abort_uploads` finds
                self._client._abort_multipart_upload(self._bucket, key, upload_id)
            raise

    def _send_parts(self, key: str, upload_id: str, reader: Reader, size_bytes: int) -> list[Part]:
        def send(number: int, content: bytes) -> Part:
            with _translated():
                return Part(number, self._client._upload_part(self._bucket, key, content, None, upload_id, number))

        parts: list[Part] = []
        in_flight: deque[Future[Part]] = deque()
        with ThreadPoolExecutor(PARTS_IN_FLIGHT, thread_name_prefix="parts") as threads:
            for number, start in enumerate(range(0, size_bytes, PART_BYTES), 1):
                content = reader.read(min(PART_BYTES, size_bytes - start))
                if len(in_flight) == PARTS_IN_FLIGHT:
                    parts.append(in_flight.popleft().result())
                in_flight.append(threads.submit(send, number, content))
            parts += [each.result() for each in in_flight]
        return parts

    def put_content(self, path: Path, sha256: str) -> None:
        """Stores a file under its content's key, unless the store has it at that length already."""
        key = content_key(sha256)
        if self.size_bytes(key) != path.stat().st_size:
            with _translated():
                self.create_bucket()
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

    def stream(self, key: str, offset_bytes: int = 0, limit_bytes: int = 0) -> Generator[bytes, None, None]:
        """The bytes under a key from an offset on, at most `limit_bytes` unless 0, in pieces of at most READ_BYTES.

        No piece at all when the object ends before the offset.
        """
        with _translated():
            try:
                response = self._client.get_object(self._bucket, key, offset=offset_bytes, length=limit_bytes)
            except S3Error as error:
                if error.code != "InvalidRange":
                    raise
                return
            try:
                yield from response.stream(READ_BYTES)
            finally:
                response.close()
                response.release_conn()

    def keys(self, prefix: str) -> Iterator[str]:
        """Every key that starts with `prefix`."""
        return (entry.key for entry in self.entries(prefix))

    def entries(self, prefix: str) -> Iterator[BlobEntry]:
        """Every object whose key starts with `prefix`; none while there is no bucket."""
        with _translated():
            try:
                for found in self._client.list_objects(self._bucket, prefix, recursive=True):
                    yield BlobEntry(str(found.object_name), found.size or 0, found.last_modified)
            except S3Error as error:
                if error.code != "NoSuchBucket":
                    raise

    def delete(self, key: str) -> None:
        """Deletes what is under a key, if anything."""
        with _translated():
            self._client.remove_object(self._bucket, key)

    def delete_many(self, keys: Iterable[str]) -> None:
        """Deletes what is under these keys, as far as anything is."""
        with _translated():
            errors = self._client.remove_objects(self._bucket, (DeleteObject(key) for key in keys))
            failed = [error for error in errors if error.code not in _MISSING]  # requests are made as this is read
            if failed:
                raise _unavailable()

    def count_uploads(self, prefix: str, *, older_than: datetime) -> int:
        """How many multipart uploads `abort_uploads` would give up."""
        with _translated():
            return len(self._uploads_before(older_than, prefix))

    def abort_uploads(self, prefix: str, *, older_than: datetime) -> int:
        """Gives up multipart uploads that began before that and whose process has gone. Returns how many."""
        count = 0
        with _translated():
            for name, upload_id in self._uploads_before(older_than, prefix):
                try:
                    self._client._abort_multipart_upload(self._bucket, name, upload_id)
                except S3Error as error:
                    if error.code != "NoSuchUpload":  # another collector was faster
                        raise
                else:
                    count += 1
        return count

    def _uploads_before(self, moment: datetime, prefix: str) -> list[tuple[str, str]]:
        """Multipart uploads that began before that, by key and id; none while there is no bucket."""
        try:
            # minio has no public way to what a killed process leaves behind.
            ongoing = self._client._list_multipart_uploads(self._bucket, prefix=prefix).uploads
        except S3Error as error:
            if error.code != "NoSuchBucket":
                raise
            return []
        return [
            (str(upload.object_name), str(upload.upload_id))
            for upload in ongoing
            if upload.initiated_time is not None and upload.initiated_time < moment
        ]

    def create_bucket(self) -> None:
        """Makes the bucket unless it is there: at the first write, since what needs no S3 must not wait for it."""
        if self._has_bucket:
            return
        with _translated():
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
