"""A look past the registry: its rows and its objects."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy.orm import Session

from atelier.storage.database import Database
from services.registry.content_tables import BlobRow
from services.registry.main import MIGRATIONS
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


def key_of(server: RegistryServer, content: bytes) -> str:
    """Where a content lies."""
    with rows_of(server) as session:
        return session.get_one(BlobRow, sha256_of(content)).object_key
