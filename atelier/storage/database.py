"""SQL for metadata: one engine a service, migrated to the newest schema when the service starts.

SQLite (a file) serves one machine, PostgreSQL a cluster. SQLite takes its write lock when a transaction begins,
so that a read followed by a write sees no other writer in between; on PostgreSQL such transactions lock their rows.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from alembic import command, context
from alembic.config import Config
from google.protobuf.timestamp_pb2 import Timestamp
from sqlalchemy import Connection, DateTime, MetaData, exc, text
from sqlalchemy.engine import Dialect
from sqlalchemy.orm import DeclarativeBase, Session, sessionmaker
from sqlalchemy.types import TypeDecorator

from atelier.errors import AbortedError, UnavailableError
from atelier.storage.engines import open_engine, reading

WRITE_CONFLICT = "WRITE_CONFLICT"
"""Reason of the AbortedError of a transaction that may succeed when it is tried again."""
_CONFLICTS = ("40001", "40P01")
"""SQLSTATEs: serialization failure, deadlock."""
_MIGRATION = "migration"


class UtcDateTime(TypeDecorator[datetime]):
    """A moment in UTC, aware of it, on databases that keep no time zone too."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return None if value is None else value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return None if value is None else value.replace(tzinfo=UTC)


class Database:
    """A service's database; no two services share one.

    Args:
        url: SQLAlchemy URL, such as `sqlite:////var/lib/atelier/registry.db` or `postgresql://user@host/registry`.
        migrations: folder of the service's Alembic migrations.
    """

    def __init__(self, url: str, migrations: Path) -> None:
        self._migrations = migrations
        self._engine = open_engine(url)
        self._is_sqlite = self._engine.dialect.name == "sqlite"
        self._sessions = sessionmaker(self._engine, expire_on_commit=False)
        self._reading_sessions = sessionmaker(reading(self._engine), expire_on_commit=False)
        self._held: set[str] = set()
        self._held_lock = threading.Lock()

    def migrate(self) -> None:
        """Brings the schema to the newest revision; of several replicas that start together, one does."""
        config = Config()
        config.set_main_option("script_location", str(self._migrations).replace("%", "%%"))
        with self.schema_change() as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, "head")

    @contextmanager
    def schema_change(self) -> Iterator[Connection]:
        """A transaction in which the schema may change; on all replicas there is one at a time."""
        with self._engine.connect() as connection:
            change = _change_sqlite(connection) if self._is_sqlite else _change_postgresql(connection)
            with change:
                yield connection

    @contextmanager
    def transaction(self, *, read_only: bool = False) -> Iterator[Session]:
        """A session that commits at the end, or rolls back when the block raises.

        One that is `read_only` waits for no writer and sees one moment; it must not write.

        Raises:
            AbortedError: with the reason WRITE_CONFLICT; the same may succeed when it is tried again.
            UnavailableError: the database does not answer in time. What was to be committed may be, or not.
        """
        sessions = self._reading_sessions if read_only else self._sessions
        with _errors(), sessions.begin() as session:
            yield session

    @contextmanager
    def try_lock(self, name: str) -> Iterator[bool]:
        """Whether nobody else holds the lock of this name, on any replica; then it is held to the end of the block.

        A replica whose connection breaks loses its locks without being told: they spare double work, and guard nothing.
        """
        if self._is_sqlite:
            with self._try_lock_here(name) as is_mine:
                yield is_mine
            return
        with _errors(), self._engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            key = {"key": _lock_key(name)}
            is_mine = bool(connection.scalar(text("SELECT pg_try_advisory_lock(:key)"), key))
            try:
                yield is_mine
            finally:
                if is_mine:
                    connection.execute(text("SELECT pg_advisory_unlock(:key)"), key)

    @contextmanager
    def _try_lock_here(self, name: str) -> Iterator[bool]:
        with self._held_lock:
            is_mine = name not in self._held
            self._held.add(name)
        try:
            yield is_mine
        finally:
            if is_mine:
                self._held.discard(name)

    def close(self) -> None:
        """Closes the connections."""
        self._engine.dispose()


@contextmanager
def _change_sqlite(connection: Connection) -> Iterator[None]:
    """SQLite alters a table by copying it, during which references to it lead nowhere."""
    _set_foreign_keys(connection, "OFF")
    try:
        with connection.begin():
            yield
            assert not connection.exec_driver_sql("PRAGMA foreign_key_check").all(), "a reference leads nowhere"
    finally:
        _set_foreign_keys(connection, "ON")


@contextmanager
def _change_postgresql(connection: Connection) -> Iterator[None]:
    with connection.begin():
        connection.execute(text("SET LOCAL statement_timeout = 0"))
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _lock_key(_MIGRATION)})
        yield


def _set_foreign_keys(connection: Connection, value: str) -> None:
    """Outside of transactions, where alone SQLite heeds it."""
    raw = connection.connection.driver_connection
    assert raw is not None
    raw.execute(f"PRAGMA foreign_keys={value}")


def _lock_key(name: str) -> int:
    """Of an advisory lock: a number of 64 bits."""
    return int.from_bytes(hashlib.sha256(f"atelier/{name}".encode()).digest()[:8], "big", signed=True)


@contextmanager
def _errors() -> Iterator[None]:
    """Tells what may pass; anything else is a bug."""
    try:
        yield
    except exc.IntegrityError as error:
        raise _conflict() from error
    except exc.TimeoutError as error:
        raise _unavailable() from error
    except exc.DBAPIError as error:
        if getattr(error.orig, "sqlstate", None) in _CONFLICTS:
            raise _conflict() from error
        if error.connection_invalidated or isinstance(error, (exc.OperationalError, exc.InterfaceError)):
            raise _unavailable() from error
        raise


def _conflict() -> AbortedError:
    return AbortedError("somebody else wrote the same just now; retry", reason=WRITE_CONFLICT)


def _unavailable() -> UnavailableError:
    return UnavailableError("the database does not answer", reason="DATABASE_UNAVAILABLE")


def run_migrations(metadata: MetaData) -> None:
    """The whole of a service's Alembic `env.py`: runs its migrations on the connection that `migrate` opened."""
    context.configure(
        connection=context.config.attributes["connection"],
        target_metadata=metadata,
        render_as_batch=True,  # SQLite alters tables by copying them
    )
    with context.begin_transaction():
        context.run_migrations()


def utc_now() -> datetime:
    """This moment."""
    return datetime.now(UTC)


def to_timestamp(moment: datetime | None) -> Timestamp | None:
    """A moment as protobuf tells it."""
    if moment is None:
        return None
    timestamp = Timestamp()
    timestamp.FromDatetime(moment)
    return timestamp


class Model(DeclarativeBase):
    """Base class of mapped tables; each service derives its own from it with its own metadata."""

    __abstract__ = True
    type_annotation_map = {datetime: UtcDateTime}  # noqa: RUF012
