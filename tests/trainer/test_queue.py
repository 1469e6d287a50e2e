"""Leases: who may write about a job, and what an attempt's end means for it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from sqlalchemy import update

from atelier import errors
from atelier.storage.database import Database, utc_now
from services.trainer.main import MIGRATIONS
from services.trainer.queue import MAX_LOST_WORKERS, Assignment, LeaseLostError, Queue
from services.trainer.tables import DatasetRow, JobRow, State


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    database = Database(database_url, MIGRATIONS)
    database.migrate()
    with database.transaction() as session:
        dataset = DatasetRow(tenant="t", dataset_id="d", digest="sha256:0", images=[])
        prompts = {"instance_prompt": "x", "class_prompt": "", "validation_prompts": []}
        base = {"base_name": "emoji-sd", "base_digest": "sha256:0"}
        job = {
            "tenant": "t",
            "job_id": "j",
            "uid": "u",
            "method": "m",
            "adapter": "a",
            "config": {"max_train_steps": 9},
        }
        session.add(JobRow(dataset=dataset, **job, **base, **prompts))
    yield database
    database.close()


@pytest.fixture
def queue(database: Database) -> Queue:
    return Queue(database)


def claim(queue: Queue) -> Assignment:
    claimed = queue.claim()
    assert claimed is not None
    return claimed


def change(database: Database, **columns: object) -> None:
    with database.transaction() as session:
        session.execute(update(JobRow).values(**columns))


def row(database: Database) -> JobRow:
    with database.transaction(read_only=True) as session:
        return session.query(JobRow).one()


def make_due(database: Database) -> None:
    change(database, not_before=utc_now() - timedelta(seconds=1))


def test_a_claimed_job_is_claimed_once(queue: Queue) -> None:
    assert claim(queue).attempt == 1
    assert queue.claim() is None


def test_of_trainers_that_claim_at_once_one_gets_the_job(database: Database) -> None:
    barrier = threading.Barrier(8)

    def claim_at_once(_: int) -> Assignment | None:
        barrier.wait()
        return Queue(database).claim()

    with ThreadPoolExecutor(8) as threads:
        claimed = [each for each in threads.map(claim_at_once, range(8)) if each is not None]
    assert [each.attempt for each in claimed] == [1]


def test_an_expired_lease_is_claimed_again_and_the_earlier_claim_is_void(queue: Queue, database: Database) -> None:
    first = claim(queue)
    change(database, lease_expire_time=utc_now() - timedelta(seconds=1))
    second = claim(queue)
    assert second.attempt == 2
    with pytest.raises(LeaseLostError):
        queue.report(first, {"step": 5})
    with pytest.raises(LeaseLostError):
        queue.succeed(first, "version")
    assert queue.report(second, {"step": 5}) == State.RUNNING


@pytest.mark.parametrize(
    "error", [errors.UnavailableError("away"), errors.UnauthenticatedError("expired"), errors.CancelledError("stop")]
)
def test_what_passes_puts_the_job_back(queue: Queue, database: Database, error: errors.AtelierError) -> None:
    queue.fail(claim(queue), error)
    waiting = row(database)
    assert (waiting.state, waiting.stage, waiting.eta_seconds) == (State.QUEUED, "waiting", 0)
    assert waiting.not_before > utc_now()
    assert queue.claim() is None
    make_due(database)
    assert claim(queue).attempt == 2


def test_what_does_not_pass_ends_the_job(queue: Queue, database: Database) -> None:
    queue.fail(claim(queue), errors.FailedPreconditionError("diverged", reason="TRAINING_DIVERGED"))
    ended = row(database)
    assert ended.state == State.FAILED
    assert ended.error is not None
    assert ended.error["message"] == "diverged"


def test_a_cancelled_job_stays_cancelled_whatever_its_worker_says(queue: Queue, database: Database) -> None:
    claimed = claim(queue)
    change(database, state=State.CANCELLING)
    assert queue.report(claimed, {}) == State.CANCELLING
    queue.fail(claimed, errors.UnavailableError("away"))
    assert row(database).state == State.CANCELLED


def test_an_orphan_that_was_being_cancelled_is_cancelled(queue: Queue, database: Database) -> None:
    claim(queue)
    change(database, state=State.CANCELLING, lease_expire_time=utc_now() - timedelta(seconds=1))
    assert queue.claim() is None
    assert row(database).state == State.CANCELLED


def test_workers_may_die_but_not_for_ever_without_progress(queue: Queue, database: Database) -> None:
    for _ in range(MAX_LOST_WORKERS - 1):
        queue.lose_worker(claim(queue))
        assert row(database).state == State.QUEUED
    progressing = claim(queue)
    queue.report(progressing, {"checkpoint_step": 3})
    queue.lose_worker(progressing)
    for _ in range(MAX_LOST_WORKERS - 1):
        queue.lose_worker(claim(queue))
    ended = row(database)
    assert ended.state == State.FAILED
    assert ended.error is not None
    assert "workers died" in ended.error["message"]
