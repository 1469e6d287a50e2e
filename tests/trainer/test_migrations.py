"""The trainer's schema: what the code expects, reached from any revision with the data kept, and left again."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from sqlalchemy import Engine, create_engine, text

from services.trainer.main import MIGRATIONS
from services.trainer.tables import Table

_OLD_JOB = """
INSERT INTO jobs (tenant, job_id, uid, method, dataset_key, adapter, base_name, base_digest, instance_prompt,
  class_prompt, validation_prompts, config, state, attempt, lost_workers, not_before, stage, step, loss,
  images_per_second, eta_seconds, checkpoint_step, preview_step, swept_step, is_swept, preview_prompts,
  adapter_version, create_time)
VALUES ('t', 'old', 'u', 'dreambooth-lora', 1, 'fox', 'emoji-sd', 'sha256:0', 'a fox', '', '[]', '{}', 'QUEUED', 0, 0,
  '2026-01-01', 'waiting', 0, 0, 0, 0, 0, 0, 0, false, '[]', '', '2026-01-01')
"""
_OLD_DATASET = "INSERT INTO datasets VALUES (1, 't', 'fox', 'sha256:0', '[]', '2026-01-01')"


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    engine = create_engine(database_url)
    yield engine
    engine.dispose()


def migrate(engine: Engine, revision: str) -> None:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        (command.downgrade if revision in ("base", "0001") else command.upgrade)(config, revision)


def test_the_newest_revision_is_what_the_code_expects(engine: Engine) -> None:
    migrate(engine, "head")
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Table.metadata) == []


@pytest.mark.parametrize(
    ("state", "begins_again"),
    [("QUEUED", True), ("RUNNING", True), ("SUCCEEDED", False), ("FAILED", False), ("CANCELLED", False)],
)
def test_jobs_in_work_begin_again_since_their_checkpoints_are_of_another_form(
    state: str, begins_again: bool, engine: Engine
) -> None:
    migrate(engine, "head")
    migrate(engine, "0001")
    with engine.begin() as connection:
        connection.execute(text(_OLD_DATASET))
        connection.execute(text(_OLD_JOB))
        connection.execute(text("UPDATE jobs SET state = :state, step = 120, checkpoint_step = 100"), {"state": state})
    migrate(engine, "head")
    with engine.connect() as connection:
        job = connection.execute(text("SELECT state, step, checkpoint_step FROM jobs")).one()
    assert tuple(job) == (state, *((0, 0) if begins_again else (120, 100)))


def test_jobs_of_the_first_revision_survive_the_way_up_and_down(engine: Engine) -> None:
    migrate(engine, "head")
    migrate(engine, "0001")
    with engine.begin() as connection:
        connection.execute(text(_OLD_DATASET))
        connection.execute(text(_OLD_JOB))
        before = connection.execute(text("SELECT * FROM jobs")).mappings().one()
    migrate(engine, "head")
    with engine.connect() as connection:
        after = connection.execute(text("SELECT * FROM jobs")).mappings().one()
    empty = "[]" if engine.dialect.name == "sqlite" else []  # PostgreSQL's driver reads JSON
    new = {"recipe": "", "placeholder_token": "", "concepts": empty, "warnings": empty}
    assert dict(after) == {**before, **new}
    migrate(engine, "0001")
    with engine.connect() as connection:
        assert connection.execute(text("SELECT * FROM jobs")).mappings().one() == before
    migrate(engine, "base")
