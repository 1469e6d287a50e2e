"""What a transaction promises on SQLite and on PostgreSQL, when others write and when the database goes away."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import Update, exc, text, update

from atelier.errors import AbortedError, UnavailableError
from atelier.local.postgres import Postgres
from atelier.storage.database import WRITE_CONFLICT, Database
from services.registry import tables
from services.registry.content_tables import TenantRow

MIGRATIONS = Path(tables.__file__).parent / "migrations"
NAMES = ("one", "two")


def prepared(url: str) -> Database:
    """A database with a row each of NAMES."""
    database = Database(url, MIGRATIONS)
    database.migrate()
    with database.transaction() as session:
        session.add_all(TenantRow(tenant=name, stored_bytes=0, version_count=0) for name in NAMES)
    return database


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """On either kind."""
    database = prepared(database_url)
    yield database
    database.close()


@pytest.fixture
def postgresql(postgres: Postgres) -> Iterator[Database]:
    """On PostgreSQL."""
    database = prepared(postgres.create_database())
    yield database
    database.close()


def count(database: Database, name: str) -> int:
    with database.transaction(read_only=True) as session:
        return session.get_one(TenantRow, name).version_count


def add_to(name: str) -> Update:
    return update(TenantRow).where(TenantRow.tenant == name).values(version_count=TenantRow.version_count + 1)


def test_a_block_that_raises_leaves_nothing(database: Database) -> None:
    def fail() -> None:
        with database.transaction() as session:
            session.execute(add_to("one"))
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert count(database, "one") == 0


def test_concurrent_writers_of_one_row_take_turns(database: Database) -> None:
    def write(_: int) -> None:
        with database.transaction() as session:
            row = session.get_one(TenantRow, "one", with_for_update=True)
            row.version_count += 1

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(write, range(40)))
    assert count(database, "one") == 40


def test_who_only_reads_sees_one_moment(database: Database) -> None:
    with database.transaction(read_only=True) as reader:
        assert reader.get_one(TenantRow, "one").version_count == 0
        with database.transaction() as writer:
            writer.execute(add_to("two"))
        assert reader.get_one(TenantRow, "two").version_count == 0
    assert count(database, "two") == 1


def test_the_same_key_twice_is_a_conflict(database: Database) -> None:
    with pytest.raises(AbortedError) as raised, database.transaction() as session:
        session.execute(text("INSERT INTO tenants (tenant, stored_bytes, version_count) VALUES ('one', 0, 0)"))
    assert raised.value.reason == WRITE_CONFLICT


def test_replicas_that_start_together_migrate_once(database_url: str) -> None:
    replicas = [Database(database_url, MIGRATIONS) for _ in range(4)]
    barrier = threading.Barrier(len(replicas))

    def start(replica: Database) -> None:
        barrier.wait()
        replica.migrate()

    with ThreadPoolExecutor(len(replicas)) as threads:
        list(threads.map(start, replicas))
    with replicas[0].transaction(read_only=True) as session:
        assert session.query(TenantRow).count() == 0
    for replica in replicas:
        replica.close()


def test_a_lock_is_held_by_one(database: Database) -> None:
    with database.try_lock("collect") as is_first, database.try_lock("collect") as is_second:
        assert (is_first, is_second) == (True, False)
        with database.try_lock("scrub") as is_other:
            assert is_other
    with database.try_lock("collect") as is_mine:
        assert is_mine


def test_a_lock_is_held_by_one_replica_and_ends_with_it(postgres: Postgres) -> None:
    url = postgres.create_database()
    first, second = Database(url, MIGRATIONS), Database(url, MIGRATIONS)

    def hold() -> None:
        with first.try_lock("collect") as is_first:
            with second.try_lock("collect") as is_second:
                assert (is_first, is_second) == (True, False)
            disconnect_all(postgres)
            with second.try_lock("collect") as is_second:
                assert is_second

    with pytest.raises(UnavailableError):
        hold()
    first.close()
    second.close()


def test_a_deadlock_is_a_conflict_of_one_of_the_two(postgresql: Database) -> None:
    barrier = threading.Barrier(2)

    def write(first: str, second: str) -> None:
        with postgresql.transaction() as session:
            session.execute(add_to(first))
            barrier.wait()
            session.execute(add_to(second))

    with ThreadPoolExecutor(2) as threads:
        runs = [threads.submit(write, *NAMES), threads.submit(write, *reversed(NAMES))]
        errors = [error for run in runs if (error := run.exception()) is not None]
    assert [(type(error), getattr(error, "reason", "")) for error in errors] == [(AbortedError, WRITE_CONFLICT)]
    assert [count(postgresql, name) for name in NAMES] == [1, 1]


def test_who_only_reads_cannot_write(postgresql: Database) -> None:
    with pytest.raises(exc.InternalError, match="read-only"), postgresql.transaction(read_only=True) as session:
        session.execute(add_to("one"))
    with postgresql.transaction() as session:  # on the same connection
        session.execute(add_to("one"))
    assert count(postgresql, "one") == 1


def test_a_lost_connection_is_told_and_replaced(postgresql: Database, postgres: Postgres) -> None:
    def write() -> None:
        with postgresql.transaction() as session:
            session.execute(add_to("one"))
            disconnect_all(postgres)
            session.execute(add_to("one"))

    with pytest.raises(UnavailableError) as raised:
        write()
    assert raised.value.reason == "DATABASE_UNAVAILABLE"
    assert count(postgresql, "one") == 0


def test_a_statement_that_takes_too_long_is_told(postgresql: Database) -> None:
    with pytest.raises(UnavailableError), postgresql.transaction() as session:
        session.execute(text("SET LOCAL statement_timeout = 50; SELECT pg_sleep(60)"))


def test_a_database_that_is_away_is_told(tmp_path: Path) -> None:
    database = Database(f"postgresql://user:pass-word@/registry?host={tmp_path}", MIGRATIONS)
    with pytest.raises(UnavailableError) as raised, database.transaction() as session:
        session.execute(add_to("one"))
    assert "pass-word" not in repr(raised.value.__cause__)


@pytest.mark.parametrize(
    "url", ["pass-word", "mysql://user:pass-word@host/registry", "postgresql://user:pass-word@host:5a/registry", ""]
)
def test_an_url_that_cannot_be_is_refused_without_being_shown(url: str) -> None:
    with pytest.raises(ValueError, match="database_url: is none of") as raised:
        Database(url, MIGRATIONS)
    assert raised.value.__cause__ is None
    assert "pass-word" not in str(raised.value)


def disconnect_all(postgres: Postgres) -> None:
    """Ends every session but this one."""
    with postgres.connect() as connection:
        connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()")
