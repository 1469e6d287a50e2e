"""SQL for metadata: one engine a service, migrated to the newest schema when the service starts.

SQLite (a file) serves one machine, PostgreSQL a cluster. SQLite takes its write lock when a transaction begins,
so that a read followed by a write sees no other writer in between; on PostgreSQL such transactions lock their rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from alembic import command, context
from alembic.config import Config
from google.protobuf.timestamp_pb2 import Timestamp
from sqlalchemy import Connection, DateTime, Engine, MetaData, create_engine, event, exc
from sqlalchemy.engine import Dialect
from sqlalchemy.orm import DeclarativeBase, Session, sessionmaker
from sqlalchemy.types import TypeDecorator

from atelier.errors import AbortedError, UnavailableError

SQLITE_BUSY_SECONDS = 30
POOL_SIZE = 32
"""Connections: as many as a server has threads for handlers (`atelier.rpc.server.ServerConfig.max_threads`)."""
POOL_SECONDS = 10.0
_READ_ONLY = "atelier_read_only"


class UtcDateTime(TypeDecorator[datetime]):
    """A moment in UTC, aware of it, on databases that keep no time zone too."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return None if value is None else value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return None if value is None else value.replace(tzinfo=UTC)


class Database:
    """A service's database.

    Args:
        url: SQLAlchemy URL, such as `sqlite:////var/lib/atelier/registry.db`.
        migrations: folder of the service's Alembic migrations.
    """

    def __init__(self, url: str, migrations: Path) -> None:
        self._migrations = migrations
        # Parameters are what callers wrote: hidden, so that no log of an error shows them.
        self._engine = create_engine(
            url, pool_pre_ping=True, hide_parameters=True, pool_size=POOL_SIZE, pool_timeout=POOL_SECONDS
        )
        if self._engine.dialect.name == "sqlite":
            _prepare_sqlite(self._engine)
        self._sessions = sessionmaker(self._engine, expire_on_commit=False)
        self._reading_sessions = sessionmaker(
            self._engine.execution_options(**{_READ_ONLY: True}), expire_on_commit=False
        )

    def migrate(self) -> None:
        """Brings the schema to the newest revision."""
        config = Config()
        config.set_main_option("script_location", str(self._migrations))
        with self._engine.begin() as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, "head")

    @contextmanager
    def transaction(self, *, read_only: bool = False) -> Iterator[Session]:
        """A session that commits at the end, or rolls back when the block raises.

        One that is `read_only` waits for no writer; it must not write.
        """
        sessions = self._reading_sessions if read_only else self._sessions
        try:
            with sessions.begin() as session:
                yield session
        except (exc.OperationalError, exc.TimeoutError) as error:
            raise UnavailableError("the database does not answer", reason="DATABASE_UNAVAILABLE") from error
        except exc.IntegrityError as error:
            raise AbortedError("somebody else wrote the same just now; retry", reason="WRITE_CONFLICT") from error

    def close(self) -> None:
        """Closes the connections."""
        self._engine.dispose()


def run_migrations(metadata: MetaData) -> None:
    """The whole of a service's Alembic `env.py`: runs its migrations on the connection that `migrate` opened."""
    context.configure(
        connection=context.config.attributes["connection"],
        target_metadata=metadata,
        render_as_batch=True,  # SQLite alters tables by copying them
    )
    with context.begin_transaction():
        context.run_migrations()


def _prepare_sqlite(engine: Engine) -> None:
    @event.listens_for(engine, "connect")
    def on_connect(connection: object, _record: object) -> None:
        connection.isolation_level = None  # type: ignore[attr-defined]  # transactions begin where we say
        for pragma in ("journal_mode=WAL", "foreign_keys=ON", f"busy_timeout={SQLITE_BUSY_SECONDS * 1000}"):
            connection.execute(f"PRAGMA {pragma}")  # type: ignore[attr-defined]

    @event.listens_for(engine, "begin")
    def on_begin(connection: Connection) -> None:
        read_only = connection.get_execution_options().get(_READ_ONLY)
        connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")


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
