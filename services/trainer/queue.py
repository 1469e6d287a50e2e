"""The queue of jobs in SQL: who works on what, by leases.

A trainer claims a job for some seconds and renews the claim while its worker is on it. A trainer that dies renews
no more, and another one (or its successor) claims the job again. Several trainers may share one database.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from google.protobuf.json_format import MessageToDict
from sqlalchemy import and_, or_, select
from sqlalchemy.orm import Session

from atelier import errors
from atelier.rpc.names import JOB
from atelier.rpc.status import to_status
from atelier.storage.database import Database, utc_now
from services.trainer.tables import DatasetRow, JobRow, State

LEASE_SECONDS = 15.0
MAX_LOST_WORKERS = 3
MAX_BACKOFF_SECONDS = 60.0


@dataclass(frozen=True, kw_only=True, slots=True)
class AssignedConcept:
    """A concept of a claimed job; `images` are the records of its dataset's row."""

    images: tuple[Mapping[str, Any], ...]
    instance_prompt: str
    class_prompt: str
    placeholder_token: str
    repeats: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Assignment:
    """A claimed job, as a worker needs it. Plain data: it travels between processes."""

    uid: str
    attempt: int
    """Which claim of the job this is; later claims make it void."""
    name: str
    tenant: str
    adapter: str
    method: str
    base_name: str
    base_digest: str
    dataset_digest: str
    concepts: tuple[AssignedConcept, ...]
    """The job's own first."""
    validation_prompts: tuple[str, ...]
    config: Mapping[str, Any]
    checkpoint_step: int

    @property
    def subject(self) -> str:
        """Of the token that its worker gets: `jobs/{job}`, by which the registry knows the job."""
        return self.name.removeprefix(f"tenants/{self.tenant}/")

    @property
    def instance_prompt(self) -> str:
        """Of the first concept."""
        return self.concepts[0].instance_prompt


class LeaseLostError(Exception):
    """The job was claimed again since, by this trainer or another."""


# A token that has expired, and a stop that nobody asked for, pass with the next attempt.
_PASSING = (
    errors.UnavailableError,
    errors.DeadlineExceededError,
    errors.UnauthenticatedError,
    errors.CancelledError,
)


class Queue:
    """Claims jobs for one trainer process and records how they go."""

    def __init__(self, database: Database) -> None:
        self._database = database

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
            _lease(row)
            return _assignment(row, _concept_datasets(session, row))

    def report(self, claim: Assignment, changes: Mapping[str, Any]) -> State:
        """Records progress, renews the lease, and returns what the job is to do: go on, or stop."""
        with self._database.transaction() as session:
            row = self._own(session, claim)
            for column, value in changes.items():
                setattr(row, column, value)
            if "checkpoint_step" in changes:
                row.lost_workers = 0  # it gets on: only workers lost without progress between them count
            _lease(row)
            return State(row.state)

    def succeed(self, claim: Assignment, adapter_version: str) -> None:
        """The adapter is in the registry: the job has done what it was asked for, even if a cancel came late."""
        with self._database.transaction() as session:
            row = self._own(session, claim)
            row.adapter_version = adapter_version
            _end(row, State.SUCCEEDED)

    def fail(self, claim: Assignment, error: errors.AtelierError) -> None:
        """Ends a job by its error, or puts it back when the error will pass."""
        with self._database.transaction() as session:
            row = self._own(session, claim)
            if row.state == State.CANCELLING:
                _end(row, State.CANCELLED)
            elif isinstance(error, _PASSING):
                _put_back(row, min(MAX_BACKOFF_SECONDS, 2.0 ** min(row.attempt, 6)))
            else:
                row.error = MessageToDict(to_status(error))
                _end(row, State.FAILED)

    def lose_worker(self, claim: Assignment) -> None:
        """The worker died under the job; another one tries, but not for ever."""
        with self._database.transaction() as session:
            row = self._own(session, claim)
            row.lost_workers += 1
            lost = row.lost_workers
            if row.state != State.CANCELLING and lost < MAX_LOST_WORKERS:
                _put_back(row, 0.0)
                return
        message = f"{lost} workers died on this job, perhaps for lack of memory; try a smaller batch or resolution"
        self.fail(claim, errors.ResourceExhaustedError(message, reason="WORKER_DIED"))

    def put_back(self, claim: Assignment) -> None:
        """This trainer stops: the job waits for the next one."""
        with self._database.transaction() as session:
            row = self._own(session, claim)
            if row.state == State.CANCELLING:
                _end(row, State.CANCELLED)
            else:
                _put_back(row, 0.0)

    def _own(self, session: Session, claim: Assignment) -> JobRow:
        row = session.scalar(select(JobRow).where(JobRow.uid == claim.uid).with_for_update())
        if row is None or row.attempt != claim.attempt or row.state not in (State.RUNNING, State.CANCELLING):
            raise LeaseLostError(claim.uid)
        return row


def _lease(row: JobRow) -> None:
    row.lease_expire_time = utc_now() + timedelta(seconds=LEASE_SECONDS)


def _end(row: JobRow, state: State) -> None:
    row.state, row.end_time, row.lease_expire_time, row.eta_seconds = state, utc_now(), None, 0.0


def _put_back(row: JobRow, delay_seconds: float) -> None:
    row.state, row.stage, row.lease_expire_time = State.QUEUED, "waiting", None
    row.eta_seconds = row.images_per_second = 0.0
    row.not_before = utc_now() + timedelta(seconds=delay_seconds)


def _concept_datasets(session: Session, row: JobRow) -> list[DatasetRow]:
    """The datasets of all concepts, the job's own first."""
    ids = {concept["dataset_id"] for concept in row.concepts}
    query = select(DatasetRow).where(DatasetRow.tenant == row.tenant, DatasetRow.dataset_id.in_(ids))
    found = {dataset.dataset_id: dataset for dataset in session.scalars(query)}
    return [row.dataset, *(found[concept["dataset_id"]] for concept in row.concepts)]


def _assignment(row: JobRow, datasets: Sequence[DatasetRow]) -> Assignment:
    own = {
        "instance_prompt": row.instance_prompt,
        "class_prompt": row.class_prompt,
        "placeholder_token": row.placeholder_token,
        "repeats": row.config.get("repeats", 1),  # a job from before the setting has none
    }
    return Assignment(
        uid=row.uid,
        attempt=row.attempt,
        name=JOB.format(tenant=row.tenant, job=row.job_id),
        tenant=row.tenant,
        adapter=row.adapter,
        method=row.method,
        base_name=row.base_name,
        base_digest=row.base_digest,
        dataset_digest=joint_digest([dataset.digest for dataset in datasets]),
        concepts=tuple(
            AssignedConcept(
                images=tuple(dataset.images),
                instance_prompt=concept["instance_prompt"],
                class_prompt=concept["class_prompt"],
                placeholder_token=concept["placeholder_token"],
                repeats=concept["repeats"],
            )
            for dataset, concept in zip(datasets, [own, *row.concepts], strict=True)
        ),
        validation_prompts=tuple(row.validation_prompts),
        config=row.config,
        checkpoint_step=row.checkpoint_step,
    )


def joint_digest(digests: Sequence[str]) -> str:
    """A digest over datasets in their order; of one dataset, its own."""
    if len(digests) == 1:
        return digests[0]
    return f"sha256:{hashlib.sha256(json.dumps(list(digests)).encode()).hexdigest()}"
