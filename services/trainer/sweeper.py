"""Deletes what nobody needs any more: of jobs replaced checkpoints and previews and, at the end, every checkpoint; and
the answers of old requests.

Which files are to be deleted follows from the job's row alone, so a sweep that was missed or cut off is made up for by
the next one, of this trainer or another.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import or_, select, update

from atelier.storage.database import Database, utc_now
from atelier.storage.requests import KEPT, forget_old
from services.trainer.job_files import JobFiles
from services.trainer.tables import TERMINAL, JobRow, TrainerRequest

_JOBS_A_SWEEP = 200


@dataclass(frozen=True, kw_only=True, slots=True)
class _Due:
    uid: str
    checkpoint_step: int
    preview_step: int
    ended: bool


class Sweeper:
    """Keeps S3 and the database free of what has been left behind."""

    def __init__(self, database: Database, files: JobFiles) -> None:
        self._database = database
        self._files = files

    def sweep(self) -> None:
        """Deletes what is due now. UnavailableError when S3 or the database is away."""
        for job in self._due():
            keep = None if job.ended else job.checkpoint_step
            self._files.delete_checkpoints(job.uid, before_step=keep)
            self._files.delete_previews(job.uid, before_step=job.preview_step)
            swept = {"swept_step": max(job.checkpoint_step, job.preview_step), "is_swept": job.ended}
            with self._database.transaction() as session:
                session.execute(update(JobRow).where(JobRow.uid == job.uid).values(**swept))
        with self._database.transaction() as session:
            forget_old(session, TrainerRequest, utc_now() - KEPT)

    def _due(self) -> list[_Due]:
        is_behind = or_(JobRow.checkpoint_step > JobRow.swept_step, JobRow.preview_step > JobRow.swept_step)
        has_ended = JobRow.state.in_(TERMINAL)
        columns = (JobRow.uid, JobRow.checkpoint_step, JobRow.preview_step, JobRow.state)
        query = select(*columns).where(JobRow.is_swept.is_(False), or_(has_ended, is_behind))
        with self._database.transaction(read_only=True) as session:
            rows = session.execute(query.limit(_JOBS_A_SWEEP)).all()
        return [
            _Due(uid=uid, checkpoint_step=checkpoint, preview_step=preview, ended=state in TERMINAL)
            for uid, checkpoint, preview, state in rows
        ]
