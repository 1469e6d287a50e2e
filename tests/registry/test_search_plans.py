"""How databases go about lists: by an index, whatever is asked for, and in one order of text on both kinds."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextvars import copy_context
from typing import Any

import pytest
from sqlalchemy import Connection, event, text
from sqlalchemy.orm import Session

from atelier.local.postgres import Postgres
from atelier.pb.registry.v1 import registry_pb2 as pb
from atelier.rpc.call import Call, set_call
from atelier.storage.database import Database
from services.registry import search
from services.registry.content_tables import BlobRow
from services.registry.main import MIGRATIONS
from services.registry.tables import AdapterRow, FileRow, MetricRow, TagRow, TriggerWordRow, VersionRow

TENANT, OTHER = "acme", "aviary"
COUNT = search.FEW + 100
ALL = "tenants/-/adapters/-"
_WALK = re.compile(r"SCAN (versions|adapters|files|metrics|trigger_words|tags|alias_moves)\b|AUTOMATIC")


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    """An SQLite database with an adapter of so many versions that they are not few."""
    database = Database(f"sqlite:///{tmp_path_factory.mktemp('plans') / 'registry.db'}", MIGRATIONS)
    database.migrate()
    with database.transaction() as session:
        session.add(AdapterRow(tenant=TENANT, adapter_id="fox", description="", tags=[TagRow(tag="animal")]))
        session.flush()
        session.execute(text("PRAGMA defer_foreign_keys = ON"))
        own = [{"tenant": TENANT, "adapter_id": "fox", "number": number} for number in range(1, COUNT + 1)]
        fields = ("manifest", "base_model", "base_model_digest", "family", "method", "instance_prompt", "source_job")
        rest: dict[str, Any] = {**dict.fromkeys(fields, "x"), "signatures": [], "weights": [], "digest": "x"}
        session.bulk_insert_mappings(VersionRow, [{**key, **rest} for key in own])
        session.bulk_insert_mappings(MetricRow, [{**key, "name": "clip_i", "value": 1.0} for key in own])
        session.bulk_insert_mappings(TriggerWordRow, [{**key, "word": "sks"} for key in own])
        session.add_all(TriggerWordRow(**key, word="rare") for key in own[:3])
        session.add(AdapterRow(tenant=OTHER, adapter_id="owl", description=""))
        own = [{"tenant": OTHER, "adapter_id": "owl", "number": number} for number in range(1, 26)]
        session.bulk_insert_mappings(VersionRow, [{**key, **rest} for key in own])
        session.add(BlobRow(sha256="x", size_bytes=1, object_key="x"))
        session.flush()
        files = [{"path": f"{index}.json", "size_bytes": 1, "sha256": "x"} for index in range(999)]
        session.bulk_insert_mappings(FileRow, [{**key, **file} for key in own for file in files])
    with database.transaction(read_only=True) as session:
        set_call(Call(tenant=TENANT, subject="test", correlation_id="test"))
        yield session
    database.close()


def plan_of(session: Session, request: pb.ListVersionsRequest) -> list[str]:
    """What SQLite does for each query of a list."""
    seen: list[tuple[str, Any]] = []
    connection = session.connection()

    def remember(_: Connection, __: Any, statement: str, parameters: Any, *more: Any) -> None:
        seen.append((statement, parameters))

    event.listen(connection, "before_cursor_execute", remember)
    listed = search.list_versions(session, request)
    event.remove(connection, "before_cursor_execute", remember)
    assert len(listed.versions) in (3, 50)
    session.expunge_all()
    plans = [connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {query}", parameters) for query, parameters in seen]
    return [row[3] for plan in plans for row in plan]


@pytest.mark.parametrize("parent", [ALL, "tenants/-/adapters/fox"])
@pytest.mark.parametrize("order_by", ["", "create_time", "metrics.clip_i desc", "metrics.unknown"])
@pytest.mark.parametrize(
    "filter_",
    [
        "",
        "base_model.model = x",
        "base_model.digest = x",
        "trigger_words:sks",
        "trigger_words:rare",
        "tags:animal",
        "metrics.clip_i > 0.5",
        "method = x AND tags:animal AND trigger_words:rare",
    ],
)
def test_no_table_is_read_from_one_end_to_the_other(session: Session, parent: str, order_by: str, filter_: str) -> None:
    plan = plan_of(session, pb.ListVersionsRequest(parent=parent, order_by=order_by, filter=filter_))
    assert [line for line in plan if _WALK.match(line)] == []
    # A page is sorted only where few versions are left.
    assert any("B-TREE FOR ORDER BY" in line for line in plan) == ("rare" in filter_)


def test_few_and_many_are_found_by_different_indexes(session: Session) -> None:
    plans = [
        " ".join(plan_of(session, pb.ListVersionsRequest(parent=ALL, filter=f"trigger_words:{word}")))
        for word in ("rare", "sks")
    ]
    assert ["versions_by_time" in plan for plan in plans] == [False, True]


def test_postgresql_orders_text_as_sqlite_does(postgres: Postgres) -> None:
    database = Database(postgres.create_database(), MIGRATIONS)
    database.migrate()
    query = (
        "SELECT table_name, column_name FROM information_schema.columns WHERE table_schema = current_schema() AND "
        "data_type IN ('text', 'character varying') AND collation_name IS DISTINCT FROM 'C'"
    )
    with database.transaction(read_only=True) as session:
        assert session.execute(text(query)).all() == [("alembic_version", "version_num")]
    database.close()


def test_page_ends_where_its_versions_have_too_many_files(session: Session) -> None:
    """That is behind 20 versions of 999 files."""
    pages = copy_context().run(lambda: list(pages_of_owl(session)))
    assert [len(page) for page in pages] == [20, 5]
    numbers = [int(each.name.rsplit("/", 1)[1]) for page in pages for each in page]
    assert numbers == list(range(25, 0, -1))
    assert all(len(each.files) == 999 for page in pages for each in page)


def pages_of_owl(session: Session) -> Iterator[Sequence[pb.Version]]:
    """The other tenant's versions, with the longest pages."""
    set_call(Call(tenant=OTHER, subject="test", correlation_id="test"))
    request = pb.ListVersionsRequest(parent="tenants/-/adapters/owl", page_size=1000)
    while True:
        page = search.list_versions(session, request)
        session.expunge_all()
        yield page.versions
        if not page.next_page_token:
            return
        request.page_token = page.next_page_token
