"""A look past the registry: its rows and its objects."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

from minio import Minio
from sqlalchemy.orm import Session

from atelier.storage.blobs import S3Config
from atelier.storage.database import Database
from services.registry.content_tables import BlobRow
from services.registry.main import MIGRATIONS
from services.registry.storing import BLOBS_PREFIX
from tests.harness.registry import RegistryServer


def sha256_of(content: bytes) -> str:
    """SHA-256 in hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


@contextmanager
def database_of(server: RegistryServer) -> Iterator[Database]:
    """The database of a registry's process, from here."""
    database = Database(server.database_url, MIGRATIONS)
    yield database
    database.close()


@contextmanager
def rows_of(server: RegistryServer) -> Iterator[Session]:
    """A transaction on the database of a registry's process."""
    with database_of(server) as database, database.transaction() as session:
        yield session


def objects_begun(s3: S3Config) -> list[str]:
    """The keys of contents of which a bucket has parts, but which never came to be."""
    store = Minio(s3.endpoint, s3.access_key, s3.secret_key, secure=s3.secure, region=s3.region)
    return [str(upload.object_name) for upload in store._list_multipart_uploads(s3.bucket, prefix=BLOBS_PREFIX).uploads]


def key_of(server: RegistryServer, content: bytes) -> str:
    """Where a content lies."""
    with rows_of(server) as session:
        return session.get_one(BlobRow, sha256_of(content)).object_key
