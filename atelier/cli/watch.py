"""Following jobs to their end, through restarts of the trainer.

A job runs in the trainer, not here: whatever ends the watching, the job goes on.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TypeVar

import click
from rich.progress import Progress, TaskID

from atelier.cli.output import last_part, progress_bar
from atelier.client import TrainerClient
from atelier.errors import CancelledError, DeadlineExceededError, UnavailableError
from atelier.pb.trainer.v1 import trainer_pb2 as pb

ENDED = (pb.JOB_STATE_SUCCEEDED, pb.JOB_STATE_FAILED, pb.JOB_STATE_CANCELLED)
FIRST_PAUSE_SECONDS = 0.5
MAX_PAUSE_SECONDS = 8.0
GIVE_UP_SECONDS = 600.0
"""Without a word from the trainer for so long, watching ends with the trainer's error."""
POLL_SECONDS = 2.0

_BROKEN = (UnavailableError, CancelledError, DeadlineExceededError)
_Answer = TypeVar("_Answer")


def state_name(state: pb.JobState) -> str:
    """`RUNNING` of JOB_STATE_RUNNING."""
    return pb.JobState.Name(state).removeprefix("JOB_STATE_")


class Patience:
    """Decides whether to try again after an error, and waits growing times before it."""

    def __init__(self) -> None:
        self._pause_seconds = FIRST_PAUSE_SECONDS
        self._has_answered = False
        self._away_since: float | None = None

    def reset(self) -> None:
        """The service has answered."""
        self._pause_seconds = FIRST_PAUSE_SECONDS
        self._has_answered = True
        self._away_since = None

    def wait(self) -> bool:
        """False, at once, when the service has never answered or has been away for GIVE_UP_SECONDS."""
        now = time.monotonic()
        self._away_since = self._away_since or now
        if not self._has_answered or now - self._away_since > GIVE_UP_SECONDS:
            return False
        time.sleep(self._pause_seconds)
        self._pause_seconds = min(2 * self._pause_seconds, MAX_PAUSE_SECONDS)
        return True


def follow(
    trainer: TrainerClient, job_id: str, *, on_break: Callable[[], None] = lambda: None
) -> Iterator[pb.WatchJobResponse]:
    """A job's changes until it has ended; a broken stream is opened again, after `on_break()`."""
    patience = Patience()
    while True:
        try:
            for response in trainer.watch(job_id):
                patience.reset()
                yield response
                if response.job.state in ENDED:
                    return
            raise UnavailableError("the trainer closed the stream before the job had ended")
        except _BROKEN:
            on_break()
            if not patience.wait():
                raise


@contextmanager
def goes_on(what: str, *commands: str) -> Iterator[None]:
    """Tells, when the user interrupts, that the work goes on, and which commands then help."""
    try:
        yield
    except KeyboardInterrupt:
        hints = " or ".join(f"`atelier {command}`" for command in commands)
        click.echo(f"\n{what}; see {hints}", err=True)
        raise


def watch_job(trainer: TrainerClient, job_id: str, *, previews: Path | None = None) -> pb.Job:
    """Shows a job's progress until it has ended, and returns it.

    Where standard error is no terminal, a line for each stage takes the bar's place.

    Args:
        previews: folder that gets the sample images.
    """
    job = pb.Job()
    with progress_bar() as progress:
        task = progress.add_task("connecting", total=None, detail="")

        def say_broken() -> None:
            progress.update(task, detail="the trainer does not answer; trying again")

        for response in follow(trainer, job_id, on_break=say_broken):
            stage = _stage(response.job)
            if progress.disable and stage != _stage(job):
                click.echo(f"job {job_id}: {stage}", err=True)
            job = response.job
            _show(progress, task, job)
            if previews is not None:
                _save(response.samples, previews)
    return job


def watch_batch(trainer: TrainerClient, batch_id: str) -> list[pb.Job]:
    """Shows how many jobs of a batch have ended until all have, and returns them in order."""
    ended = [state_name(state) for state in ENDED]
    with progress_bar() as progress:
        task = progress.add_task(f"batch {batch_id}", total=None, detail="")
        while True:
            batch = _patiently(lambda: trainer.batch(batch_id))
            counts = Counter(batch.job_counts)
            done = sum(counts[state] for state in ended)
            detail = ", ".join(f"{count} {state.lower()}" for state, count in sorted(counts.items()) if count)
            progress.update(task, completed=done, total=len(batch.jobs), detail=detail)
            if done == len(batch.jobs):
                break
            time.sleep(POLL_SECONDS)
    return [_patiently(partial(trainer.job, last_part(name))) for name in batch.jobs]


def _patiently(ask: Callable[[], _Answer]) -> _Answer:
    patience = Patience()
    patience.reset()
    while True:
        try:
            return ask()
        except _BROKEN:
            if not patience.wait():
                raise


def _stage(job: pb.Job) -> str:
    return job.progress.stage if job.state == pb.JOB_STATE_RUNNING else state_name(job.state).lower()


def _show(progress: Progress, task: TaskID, job: pb.Job) -> None:
    now = job.progress
    details = []
    if now.step:
        details.append(f"step {now.step}/{now.total_steps}  loss {now.loss:.4f}")
    if now.images_per_second and now.step < now.total_steps:
        details.append(f"{now.images_per_second:.1f} images/s  ETA {timedelta(seconds=round(now.eta_seconds))}")
    total = now.total_steps or None
    progress.update(task, description=_stage(job), total=total, completed=now.step, detail="  ".join(details))


def _save(samples: Iterable[pb.Sample], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for index, sample in enumerate(samples):
        (folder / f"step-{sample.step:05d}-{index}.png").write_bytes(sample.png)
