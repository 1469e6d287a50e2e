"""The registry's schema: what the code expects, reached from the first revision with the data kept, and left again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from sqlalchemy import inspect, text
from sqlalchemy.orm import Session

from atelier.manifest import canonical_manifest, digest_of
from atelier.pb.common.v1.common_pb2 import BaseModel, File
from atelier.pb.registry.v1 import registry_pb2 as pb
from atelier.storage.database import Database, utc_now
from services.registry import content_tables, tables, token_tables  # noqa: F401  # their tables are in the same metadata
from services.registry.tables import Table

SHAS = [hashlib.sha256(bytes([index])).hexdigest() for index in range(3)]
SIZES = [1000, 20, 5]
SIZE_BY_SHA = dict(zip(SHAS, SIZES, strict=True))
OLD_TIME = datetime(2026, 1, 1, tzinfo=UTC)


MIGRATIONS = Path(tables.__file__).parent / "migrations"


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """Without a table."""
    database = Database(database_url, MIGRATIONS)
    yield database
    database.close()


def move(database: Database, *revisions: str) -> None:
    """Brings the schema to a revision, then to the next."""
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    for revision in revisions:
        with database.schema_change() as connection:
            config.attributes["connection"] = connection
            (command.upgrade if revision.startswith("+") else command.downgrade)(config, revision)


def differences(database: Database) -> list[Any]:
    """Between the schema and what the code expects."""
    with database.schema_change() as connection:
        return compare_metadata(MigrationContext.configure(connection), Table.metadata)


def schema(database: Database) -> dict[str, Any]:
    """Columns, indexes and references of every table."""
    with database.schema_change() as connection:
        inspector = inspect(connection)
        return {
            name: (
                sorted(
                    (column["name"], repr(column["type"]), column["nullable"]) for column in inspector.get_columns(name)
                ),
                sorted((index["name"], index["column_names"]) for index in inspector.get_indexes(name)),
                sorted((key["constrained_columns"], key["referred_table"]) for key in inspector.get_foreign_keys(name)),
                inspector.get_pk_constraint(name)["constrained_columns"],
            )
            for name in inspector.get_table_names()
        }


def version(*shas: str, **fields: Any) -> pb.Version:
    """As its publisher described it."""
    paths = ("pytorch_lora_weights.safetensors", "README.md")
    files = [File(path=path, size_bytes=SIZE_BY_SHA[sha], sha256=sha) for path, sha in zip(paths, shas, strict=False)]
    base = BaseModel(model="emoji-sd", digest=f"sha256:{'0' * 64}")
    return pb.Version(base_model=base, method="dreambooth-lora", files=files, **fields)


VERSIONS = {
    ("one", "fox", 1): version(*SHAS[:2], instance_prompt="a “sks” fox", metrics={"clip_i": 0.5, "whole": 1.0}),
    ("one", "fox", 2): version(SHAS[0], source_job="tenants/one/jobs/j"),
    ("one", "style-1", 1): version(SHAS[2], SHAS[1]),
    ("two", "fox", 1): version(SHAS[0]),
}


def old_rows(session: Session) -> dict[str, list[tuple[Any, ...]]]:
    """What revision 0001 has of adapters; scores as they are written, not how."""
    names = {
        "adapters": "tenant, adapter_id, description, latest_number, etag, create_time",
        "versions": "tenant, adapter_id, number, digest, base_model, base_model_digest, method, instance_prompt, "
        "metrics, source_job, create_time",
        "files": "tenant, adapter_id, number, path, size_bytes, sha256",
        "aliases": "tenant, adapter_id, alias_id, number, etag, update_time",
    }
    queries = {table: text(f"SELECT {columns} FROM {table}") for table, columns in names.items()}
    return {table: sorted(map(tuple, session.execute(query).all()), key=str) for table, query in queries.items()}


def insert_old_rows(session: Session) -> None:
    """As revision 0001 had them."""
    for tenant, adapter, latest in (("one", "fox", 2), ("one", "style-1", 1), ("two", "fox", 1), ("two", "empty", 0)):
        row = {"tenant": tenant, "adapter": adapter, "latest": latest, "time": str(OLD_TIME)}
        session.execute(text("INSERT INTO adapters VALUES (:tenant, :adapter, 'd', :latest, 'etag', :time)"), row)
    for (tenant, adapter, number), message in VERSIONS.items():
        key = {"tenant": tenant, "adapter": adapter, "number": number}
        row = {
            "digest": digest_of(canonical_manifest(message)),
            "base": message.base_model.digest,
            "prompt": message.instance_prompt,
            "metrics": json.dumps(dict(message.metrics)),
            "job": message.source_job,
            "time": str(OLD_TIME),
        }
        session.execute(
            text(
                "INSERT INTO versions VALUES (:tenant, :adapter, :number, :digest, 'emoji-sd', :base, "
                "'dreambooth-lora', :prompt, :metrics, :job, :time)"
            ),
            {**key, **row},
        )
        for file in message.files:
            columns = {"path": file.path, "size": file.size_bytes, "sha": file.sha256}
            session.execute(
                text("INSERT INTO files VALUES (:tenant, :adapter, :number, :path, :size, :sha)"), {**key, **columns}
            )
    session.execute(text(f"INSERT INTO aliases VALUES ('one', 'fox', 'best', 1, 'etag', '{OLD_TIME}')"))
    session.execute(text(f"INSERT INTO requests VALUES ('one', 'id', 'print', 'name', '{OLD_TIME}')"))


def test_the_newest_revision_is_what_the_code_expects(database: Database) -> None:
    database.migrate()
    assert differences(database) == []


def test_every_way_down_ends_where_the_way_up_was(database: Database) -> None:
    move(database, "+1")
    first = schema(database)
    move(database, "+1", "-1")
    assert schema(database) == first
    move(database, "base")
    assert set(schema(database)) == {"alembic_version"}


def test_what_the_first_revision_held_is_there(database: Database) -> None:
    move(database, "+1")
    with database.transaction() as session:
        insert_old_rows(session)
    database.migrate()
    with database.transaction(read_only=True) as session:
        for key, message in VERSIONS.items():
            row = session.get_one(tables.VersionRow, key)
            assert row.manifest == canonical_manifest(message).decode()
            assert row.digest == digest_of(row.manifest.encode())
            assert {metric.name: metric.value for metric in row.metrics} == dict(message.metrics)
            assert (row.family, row.signatures, row.weights, row.delete_time) == ("", [], [], None)
            files = {file.path: file.sha256 for file in row.files}
            assert files == {file.path: file.sha256 for file in message.files}
        query = text("SELECT tenant, adapter_id, latest_number, last_number FROM adapters ORDER BY 1, 2")
        numbers = session.execute(query)
        assert [tuple(row) for row in numbers] == [
            ("one", "fox", 2, 2),
            ("one", "style-1", 1, 1),
            ("two", "empty", 0, 0),
            ("two", "fox", 1, 1),
        ]
        assert session.query(tables.AliasRow).one().number == 1
        assert session.query(tables.Request).count() == 0


def test_contents_are_counted_once_a_tenant(database: Database) -> None:
    move(database, "+1")
    with database.transaction() as session:
        insert_old_rows(session)
    database.migrate()
    with database.transaction(read_only=True) as session:
        blobs = {blob.sha256: blob for blob in session.query(content_tables.BlobRow)}
        assert {sha: (blob.size_bytes, blob.object_key) for sha, blob in blobs.items()} == {
            sha: (size, f"sha256/{sha[:2]}/{sha}") for sha, size in zip(SHAS, SIZES, strict=True)
        }
        assert {blob.unreferenced_time for blob in blobs.values()} == {None}
        held = {(row.tenant, row.sha256): row.file_count for row in session.query(content_tables.TenantBlobRow)}
        assert held == {("one", SHAS[0]): 2, ("one", SHAS[1]): 2, ("one", SHAS[2]): 1, ("two", SHAS[0]): 1}
        tenants = {row.tenant: (row.stored_bytes, row.version_count) for row in session.query(content_tables.TenantRow)}
        assert tenants == {"one": (sum(SIZES), 3), "two": (SIZES[0], 1)}


def test_a_way_up_and_down_changes_no_row_but_requests(database: Database) -> None:
    move(database, "+1")
    with database.transaction() as session:
        insert_old_rows(session)
        before = old_rows(session)
    move(database, "+1", "-1")
    with database.transaction() as session:
        assert old_rows(session) == before
    database.migrate()


def test_what_is_deleted_does_not_come_back_on_the_way_down(database: Database) -> None:
    move(database, "+1")
    with database.transaction() as session:
        insert_old_rows(session)
    database.migrate()
    with database.transaction() as session:
        session.get_one(tables.VersionRow, ("one", "fox", 2)).delete_time = utc_now()
        session.get_one(tables.AdapterRow, ("two", "fox")).delete_time = utc_now()
    move(database, "-1")
    with database.transaction() as session:
        keys = session.execute(text("SELECT tenant, adapter_id, number FROM versions ORDER BY 1, 2, 3")).all()
        assert [tuple(key) for key in keys] == [("one", "fox", 1), ("one", "style-1", 1)]
        adapters = session.execute(text("SELECT tenant, adapter_id FROM adapters ORDER BY 1, 2")).all()
        assert [tuple(key) for key in adapters] == [("one", "fox"), ("one", "style-1"), ("two", "empty")]


def test_the_way_down_is_refused_while_contents_lie_under_new_keys(database: Database) -> None:
    database.migrate()
    key = f"registry/blobs/{SHAS[0][:2]}/{SHAS[0]}/0123"
    with database.transaction() as session:
        session.add(content_tables.BlobRow(sha256=SHAS[0], size_bytes=1, object_key=key))
    with pytest.raises(RuntimeError, match="copy each object to sha256/"):
        move(database, "-1")
    with database.transaction(read_only=True) as session:
        assert session.query(content_tables.BlobRow).one().object_key == key
