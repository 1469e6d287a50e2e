"""The queue of jobs in SQL: who works on what, by leases.

A trainer claims a job for some seconds and renews the claim while its worker is on it. A trainer that dies renews
no more, and another one (or its successor) claims the job again. Several trainers may share one database.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from google.protobuf.json_format import MessageToDict
from sqlalchemy import and_, or_, select, update
from sqlalchemy.orm import Session

from atelier import errors
from atelier.rpc.names import JOB
from atelier.rpc.status import to_status
from atelier.storage.database import Database, utc_now
from services.trainer.tables import TERMINAL, JobRow, State

LEASE_SECONDS = 15.0
MAX_LOST_WORKERS = 3
MAX_BACKOFF_SECONDS = 60.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Assignment:
    """A claimed job, as a worker needs it. Plain data: it travels between processes."""

    uid: str
    name: str
    tenant: str
    adapter: str
    method: str
    base_name: str
    base_digest: str
    dataset_digest: str
    images: tuple[Mapping[str, Any], ...]
    instance_prompt: str
    class_prompt: str
    validation_prompts: tuple[str, ...]
    config: Mapping[str, Any]
    checkpoint_step: int


class LeaseLostError(Exception):
    """Another trainer has the job now."""


class Queue:
    """Claims jobs for one trainer process and records how they go."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._owner = uuid.uuid4().hex

    def claim(self) -> Assignment | None:
        """The oldest job that waits or was orphaned, now this trainer's; None when there is none."""
        now = utc_now()
        waiting = and_(JobRow.state == State.QUEUED, JobRow.not_before <= now)
        orphaned = and_(JobRow.state.in_((State.RUNNING, State.CANCELLING)), JobRow.lease_expire_time < now)
        query = select(JobRow).where(or_(waiting, orphaned)).order_by(JobRow.id).limit(1)
        with self._database.transaction() as session:
            row = session.scalar(query.with_for_update(skip_locked=True))
            if row is None:
                return None
            if row.state == State.CANCELLING:
                _end(row, State.CANCELLED)
                return None
            row.state, row.stage, row.attempt = State.RUNNING, "preparing", row.attempt + 1
            row.start_time = row.start_time or now
            self._lease(row)
            return _assignment(row)

    def report(self, uid: str, changes: Mapping[str, Any]) -> State:
        """Records progress, renews the lease, and returns what the job is to do: go on, or stop."""
        with self._database.transaction() as session:
            row = self._own(session, uid)
            for column, value in changes.items():
                setattr(row, column, value)
            self._lease(row)
            return State(row.state)

    def succeed(self, uid: str, adapter_version: str) -> None:
        """The adapter is in the registry: the job has done what it was asked for, even if a cancel came late."""
        with self._database.transaction() as session:
            row = self._own(session, uid)
            row.adapter_version = adapter_version
            _end(row, State.SUCCEEDED)

    def fail(self, uid: str, error: errors.AtelierError) -> None:
        """Ends a job by its error, or puts it back when the error will pass."""
        with self._database.transaction() as session:
            row = self._own(session, uid)
            if row.state == State.CANCELLING:
                _end(row, State.CANCELLED)
            elif isinstance(error, errors.UnavailableError):
                _put_back(row, min(MAX_BACKOFF_SECONDS, 2.0 ** min(row.attempt, 6)))
            else:
                row.error = MessageToDict(to_status(error))
                _end(row, State.FAILED)

    def lose_worker(self, uid: str) -> None:
        """The worker died under the job; another one tries, but not for ever."""
        with self._database.transaction() as session:
            row = self._own(session, uid)
            row.lost_workers += 1
            lost = row.lost_workers
            if row.state != State.CANCELLING and lost < MAX_LOST_WORKERS:
                _put_back(row, 0.0)
                return
        message = f"{lost} workers died on this job, perhaps for lack of memory; try a smaller batch or resolution"
        self.fail(uid, errors.ResourceExhaustedError(message, reason="WORKER_DIED"))

    def put_back(self, uid: str) -> None:
        """This trainer stops: the job waits for the next one."""
        with self._database.transaction() as session:
            row = self._own(session, uid)
            if row.state == State.CANCELLING:
                _end(row, State.CANCELLED)
            else:
                _put_back(row, 0.0)

    def ended_with_checkpoint(self) -> list[str]:
        """Jobs, by uid, that have ended and may still have checkpoints in S3."""
        query = select(JobRow.uid).where(JobRow.state.in_(TERMINAL), JobRow.checkpoint_step > 0).limit(100)
        with self._database.transaction() as session:
            return list(session.scalars(query))

    def forget_checkpoint(self, uid: str) -> None:
        """Records that an ended job has no checkpoint any more."""
        with self._database.transaction() as session:
            session.execute(update(JobRow).where(JobRow.uid == uid).values(checkpoint_step=0))

    def _own(self, session: Session, uid: str) -> JobRow:
        row = session.scalar(select(JobRow).where(JobRow.uid == uid).with_for_update())
        if row is None or row.lease_owner != self._owner or row.state not in (State.RUNNING, State.CANCELLING):
            raise LeaseLostError(uid)
        return row

    def _lease(self, row: JobRow) -> None:
        row.lease_owner = self._owner
        row.lease_expire_time = utc_now() + timedelta(seconds=LEASE_SECONDS)


def _end(row: JobRow, state: State) -> None:
    row.state, row.end_time, row.lease_expire_time, row.eta_seconds = state, utc_now(), None, 0.0


def _put_back(row: JobRow, delay_seconds: float) -> None:
    row.state, row.stage, row.lease_expire_time = State.QUEUED, "waiting", None
    row.not_before = utc_now() + timedelta(seconds=delay_seconds)


def _assignment(row: JobRow) -> Assignment:
    return Assignment(
        uid=row.uid,
        name=JOB.format(tenant=row.tenant, job=row.job_id),
        tenant=row.tenant,
        adapter=row.adapter,
        method=row.method,
        base_name=row.base_name,
        base_digest=row.base_digest,
        dataset_digest=row.dataset.digest,
        images=tuple(row.dataset.images),
        instance_prompt=row.instance_prompt,
        class_prompt=row.class_prompt,
        validation_prompts=tuple(row.validation_prompts),
        config=row.config,
        checkpoint_step=row.checkpoint_step,
    )
