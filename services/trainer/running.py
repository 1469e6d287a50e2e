"""One job under way: what its worker tells becomes its row in SQL, now and then and at the end."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import Any

import structlog
from google.rpc.status_pb2 import Status

from atelier import errors
from atelier.rpc.status import from_status
from services.trainer import metrics
from services.trainer.methods.base import Evaluated, Evaluating, Preparing, StepDone
from services.trainer.queue import Assignment, LeaseLostError, Queue
from services.trainer.tables import State
from services.trainer.worker import CheckpointSaved, PreviewsSaved, Published, Publishing, Stopped, WorkerEvent

REPORT_SECONDS = 0.5
_log = structlog.get_logger("atelier.scheduler")


class RunningJob:
    """Gathers a worker's events and writes them.

    Args:
        in_thread: runs blocking work in a thread.
        worker: the actor, for passing on a cancel.
    """

    def __init__(
        self, queue: Queue, in_thread: Callable[[Callable[[], Any]], Awaitable[Any]], worker: Any, claim: Assignment
    ) -> None:
        self._queue = queue
        self._in_thread = in_thread
        self._worker = worker
        self._claim = claim
        self._changes: dict[str, Any] = {}
        self._end: Published | Stopped | None = None
        self.done = asyncio.Event()
        """The worker has told everything."""

    def take(self, event: WorkerEvent) -> None:
        """Notes what an event changes."""
        if isinstance(event, Preparing | Evaluating | Publishing):
            self._changes["stage"] = type(event).__name__.lower()
        elif isinstance(event, StepDone):
            progress = asdict(event)
            del progress["total_steps"]
            self._changes.update(progress, stage="training")
            metrics.STEPS.inc()
        elif isinstance(event, CheckpointSaved):
            self._changes["checkpoint_step"] = event.step
        elif isinstance(event, PreviewsSaved):
            self._changes.update(preview_step=event.step, preview_prompts=list(event.prompts))
        elif isinstance(event, Evaluated):
            self._changes["evaluation"] = asdict(event)
        else:
            self._end = event

    async def keep_reporting(self) -> None:
        """Reports until `done` is set; passes a cancel, or the loss of the lease, on to the worker."""
        while not self.done.is_set():
            try:
                if await self._report() == State.CANCELLING:
                    self._stop_worker()
            except LeaseLostError:
                self._stop_worker()
                return
            except errors.AtelierError as error:
                _log.warning("progress not recorded yet", job=self._claim.name, reason=error.reason)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.done.wait(), REPORT_SECONDS)

    async def conclude(self) -> None:
        """Writes what has not been reported, then the end that the worker told."""
        await self._report()
        outcome = await self._in_thread(self._record_end)
        metrics.RUNS_ENDED.labels(outcome).inc()
        _log.info("run ends", job=self._claim.name, outcome=outcome)

    async def _report(self) -> State:
        """Writes what has changed and renews the lease."""
        changes, self._changes = self._changes, {}
        try:
            state: State = await self._in_thread(lambda: self._queue.report(self._claim, changes))
        except errors.AtelierError:
            self._changes = {**changes, **self._changes}
            raise
        return state

    def _record_end(self) -> str:
        if isinstance(self._end, Published):
            self._queue.succeed(self._claim, self._end.version)
            return "SUCCEEDED"
        assert self._end is not None, "a run ends with Published or Stopped"
        error = from_status(Status.FromString(self._end.status))
        self._queue.fail(self._claim, error)
        return error.reason

    def _stop_worker(self) -> None:
        self._worker.stop.remote(self._claim.uid, self._claim.attempt)
