"""Following a job: its row is read again and again, and what has changed is told.

Reading SQL rather than listening to the scheduler makes it right on every replica and after every restart.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from atelier.pb.trainer.v1 import trainer_pb2 as pb
from atelier.storage.database import Database
from services.trainer import jobs
from services.trainer.job_files import JobFiles
from services.trainer.tables import TERMINAL

POLL_SECONDS = 0.5


class Watcher:
    """Watches jobs of the caller's tenant."""

    def __init__(self, database: Database, files: JobFiles) -> None:
        self._database = database
        self._files = files

    async def watch(self, name: str) -> AsyncIterator[pb.WatchJobResponse]:
        """The job now, then after every change, until it has ended."""
        told, told_previews = None, 0
        while True:
            job, ended, previews = await asyncio.to_thread(self._read, name, told_previews)
            if job != told or previews:
                yield pb.WatchJobResponse(job=job, samples=previews)
            told, told_previews = job, previews[0].step if previews else told_previews
            if ended:
                return
            await asyncio.sleep(POLL_SECONDS)

    def _read(self, name: str, told_previews: int) -> tuple[pb.Job, bool, list[pb.Sample]]:
        with self._database.transaction(read_only=True) as session:
            row = jobs.find(session, name)
            job = jobs.to_proto(row)
        if row.preview_step == told_previews:
            return job, row.state in TERMINAL, []
        pngs = self._files.previews(row.uid, row.preview_step, len(row.preview_prompts))
        samples = [
            pb.Sample(prompt=prompt, step=row.preview_step, png=png)
            for prompt, png in zip(row.preview_prompts, pngs, strict=False)  # none, if they were replaced just now
        ]
        return job, row.state in TERMINAL, samples
