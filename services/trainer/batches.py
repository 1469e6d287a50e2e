"""Batches: many jobs checked and created in one transaction."""

from __future__ import annotations

import uuid
from collections import defaultdict
from collections.abc import Mapping, Sequence

from sqlalchemy import func, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from atelier.errors import AlreadyExistsError, InvalidArgumentError, NotFoundError
from atelier.pb.trainer.v1 import trainer_pb2 as pb
from atelier.rpc.call import current_tenant
from atelier.rpc.names import BATCH, JOB, TENANT, check_id, shown
from atelier.rpc.pages import Page
from atelier.storage.database import Database, to_timestamp
from atelier.storage.requests import perform
from services.trainer.jobs import Jobs
from services.trainer.tables import BatchRow, JobRow, TrainerRequest

MAX_JOBS = 1000


class Batches:
    """Creates and finds the batches of the caller's tenant."""

    def __init__(self, database: Database, jobs: Jobs) -> None:
        self._database = database
        self._jobs = jobs

    def create(self, request: pb.CreateBatchRequest) -> pb.Batch:
        """Creates all jobs of a batch, or none; or only checks them."""
        TENANT.parse(request.parent, "parent")
        if not 1 <= len(request.jobs) <= MAX_JOBS:
            raise InvalidArgumentError("jobs", f"holds {len(request.jobs)} jobs; 1 to {MAX_JOBS} are allowed")
        batch_id = check_id(request.batch_id, "batch_id") if request.batch_id else f"batch-{uuid.uuid4().hex[:12]}"

        def work(session: Session) -> pb.Batch:
            batch = BatchRow(tenant=current_tenant(), batch_id=batch_id)
            batch.jobs = [self._jobs.checked_row(session, job, f"jobs[{i}]") for i, job in enumerate(request.jobs)]
            _add(session, batch)
            return _with_jobs(session, batch)

        return perform(self._database, TrainerRequest, request, pb.Batch, work)

    def get(self, name: str) -> pb.Batch:
        """One batch by its full name."""
        with self._database.transaction(read_only=True) as session:
            return _with_jobs(session, _find(session, name))

    def list(self, page: Page) -> pb.ListBatchesResponse:
        """A page of the tenant's batches, newest first."""
        query = select(BatchRow).where(BatchRow.tenant == current_tenant(), BatchRow.id < page.after)
        with self._database.transaction(read_only=True) as session:
            rows = session.scalars(query.order_by(BatchRow.id.desc()).limit(page.size + 1)).all()
            rows, token = page.cut(rows, key=lambda row: row.id)
            counts = _count_jobs(session, rows)
            batches = [_to_proto(row, counts[row.id]) for row in rows]
            return pb.ListBatchesResponse(batches=batches, next_page_token=token)


def _add(session: Session, batch: BatchRow) -> None:
    session.add(batch)
    try:
        session.flush()
    except IntegrityError as error:
        raise AlreadyExistsError(
            f"batch_id: {batch.batch_id!r} is taken", reason="BATCH_EXISTS", metadata={"batch": batch.batch_id}
        ) from error


def _find(session: Session, name: str) -> BatchRow:
    ids = BATCH.parse(name, "name")
    row = session.scalar(select(BatchRow).where(BatchRow.tenant == ids["tenant"], BatchRow.batch_id == ids["batch"]))
    if row is None:
        raise NotFoundError(
            f"name: there is no batch {shown(ids['batch'])}", reason="BATCH_NOT_FOUND", metadata={"batch": ids["batch"]}
        )
    return row


def _with_jobs(session: Session, row: BatchRow) -> pb.Batch:
    batch = _to_proto(row, _count_jobs(session, [row])[row.id])
    job_ids = session.scalars(select(JobRow.job_id).where(JobRow.batch_key == row.id).order_by(JobRow.id))
    batch.jobs.extend(JOB.format(tenant=row.tenant, job=job_id) for job_id in job_ids)
    return batch


def _count_jobs(session: Session, rows: Sequence[BatchRow]) -> Mapping[int | None, dict[str, int]]:
    """By batch, the number of jobs in each state."""
    query = select(JobRow.batch_key, JobRow.state, func.count()).group_by(JobRow.batch_key, JobRow.state)
    counts: dict[int | None, dict[str, int]] = defaultdict(dict)
    for key, state, count in session.execute(query.where(JobRow.batch_key.in_([row.id for row in rows]))):
        counts[key][state] = count
    return counts


def _to_proto(row: BatchRow, job_counts: Mapping[str, int]) -> pb.Batch:
    return pb.Batch(
        name=BATCH.format(tenant=row.tenant, batch=row.batch_id),
        job_counts=job_counts,
        create_time=to_timestamp(row.create_time),
    )
