"""Connections to the two databases that are supported: SQLite for one machine, PostgreSQL for a cluster.

On both, a transaction that reads only sees one moment, and one that writes sees what others committed before it took
its locks: SQLite has one writer at a time, PostgreSQL locks rows (READ COMMITTED). No URL is ever logged or told.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event, exc, make_url

SQLITE_BUSY_SECONDS = 30
STATEMENT_SECONDS = 30
"""PostgreSQL ends a statement that takes longer, waiting for locks included."""
IDLE_SECONDS = 60
"""PostgreSQL ends a transaction that does nothing for longer: its client hangs, and others wait for its locks."""
CONNECT_SECONDS = 5
POOL_SIZE = 32
"""Connections: as many as a server has threads for handlers (`atelier.rpc.server.ServerConfig.max_threads`)."""
POOL_SECONDS = 10.0
_READ_ONLY = "atelier_read_only"
_DRIVERS = {"sqlite": "sqlite+pysqlite", "postgresql": "postgresql+psycopg"}


def open_engine(url: str) -> Engine:
    """Connects when needed, to what an SQLAlchemy URL names."""
    parsed = _parse(url)
    is_sqlite = parsed.get_backend_name() == "sqlite"
    options: dict[str, Any] = {} if is_sqlite else _POSTGRESQL_OPTIONS
    # Parameters are what callers wrote: hidden, so that no log of an error shows them.
    engine = create_engine(
        parsed, pool_pre_ping=True, hide_parameters=True, pool_size=POOL_SIZE, pool_timeout=POOL_SECONDS, **options
    )
    if is_sqlite:
        _prepare_sqlite(engine)
    return engine


def reading(engine: Engine) -> Engine:
    """The same connections, for transactions that read only and see one moment."""
    if engine.dialect.name == "sqlite":
        return engine.execution_options(**{_READ_ONLY: True})
    return engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)


def _parse(url: str) -> URL:
    try:
        parsed = make_url(url)
        driver = _DRIVERS[parsed.get_backend_name()]
    except (exc.ArgumentError, KeyError, ValueError):
        # Not the error's own text: it may quote a part of the password.
        raise ValueError(
            "database_url: is none of sqlite:////path/to/file.db and postgresql://user:password@host/database; "
            "special characters of a password are percent-encoded"
        ) from None
    return parsed.set(drivername=driver)


_POSTGRESQL_OPTIONS = {
    "isolation_level": "READ COMMITTED",
    "connect_args": {
        "application_name": "atelier",
        "connect_timeout": CONNECT_SECONDS,
        "keepalives_idle": 30,
        "keepalives_interval": 10,
        "keepalives_count": 3,
        "options": (
            f"-c statement_timeout={STATEMENT_SECONDS}s -c idle_in_transaction_session_timeout={IDLE_SECONDS}s "
            "-c timezone=UTC"
        ),
    },
}


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
