"""Runs queued jobs on Ray: one loop a worker, each claiming a job, watching it, and recording what comes of it.

The SQL rows are the truth. Ray's memory holds nothing that a restart would miss: when Ray or a worker dies, the
loop puts its job back and makes a new worker.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass
from typing import Any

import ray
import structlog
from google.rpc.status_pb2 import Status

from atelier import errors
from atelier.rpc.identity import TokenAuthority
from atelier.rpc.status import from_status
from services.trainer import metrics
from services.trainer.job_files import JobFiles
from services.trainer.methods.base import Evaluated, Evaluating, Preparing, StepDone
from services.trainer.queue import Assignment, LeaseLostError, Queue
from services.trainer.tables import State
from services.trainer.worker import (
    CheckpointSaved,
    PreviewsSaved,
    Published,
    Publishing,
    Stopped,
    TrainingWorker,
    WorkerConfig,
    WorkerEvent,
)

POLL_SECONDS = 0.3
REPORT_SECONDS = 0.5
RETRY_SECONDS = 2.0
TOKEN_SECONDS = 24 * 3600.0
SWEEP_SECONDS = 5.0
_log = structlog.get_logger("atelier.scheduler")


@dataclass(frozen=True, kw_only=True, slots=True)
class SchedulerConfig:
    """How many jobs run at once, and where."""

    ray_address: str
    num_workers: int
    gpus_per_worker: float
    """0 trains on CPUs."""


class Scheduler:
    """Keeps `num_workers` loops going until it is stopped."""

    def __init__(
        self, config: SchedulerConfig, worker: WorkerConfig, queue: Queue, files: JobFiles, authority: TokenAuthority
    ) -> None:
        self._config = config
        self._worker_config = worker
        self._queue = queue
        self._files = files
        self._authority = authority
        self._loops: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Starts the loops; Ray may come later."""
        self._loops = [asyncio.create_task(self._loop()) for _ in range(self._config.num_workers)]
        self._loops.append(asyncio.create_task(self._sweep()))

    async def stop(self) -> None:
        """Puts running jobs back into the queue and lets the workers go."""
        for loop in self._loops:
            loop.cancel()
        await asyncio.gather(*self._loops, return_exceptions=True)
        await asyncio.to_thread(ray.shutdown)

    async def _loop(self) -> None:
        worker: Any = None
        while True:
            try:
                worker = worker or await self._new_worker()
                assignment = await asyncio.to_thread(self._queue.claim)
                if assignment is None:
                    await asyncio.sleep(POLL_SECONDS)
                elif not await self._run(worker, assignment):
                    worker = None
            except errors.UnavailableError as error:
                _log.warning("waiting", reason=error.reason)
                await asyncio.sleep(RETRY_SECONDS)
            except Exception:
                _log.exception("scheduling failed; trying again")
                worker = None
                await asyncio.sleep(RETRY_SECONDS)

    async def _sweep(self) -> None:
        """Deletes the checkpoints of jobs that have ended, however they did."""
        while True:
            try:
                for uid in await asyncio.to_thread(self._queue.ended_with_checkpoint):
                    await asyncio.to_thread(self._files.delete_checkpoints, uid)
                    await asyncio.to_thread(self._queue.forget_checkpoint, uid)
            except errors.UnavailableError as error:
                _log.warning("checkpoints stay for now", reason=error.reason)
            await asyncio.sleep(SWEEP_SECONDS)

    async def _new_worker(self) -> Any:
        await asyncio.to_thread(self._connect)
        actor: Any = ray.remote(TrainingWorker).options(
            num_cpus=1, num_gpus=self._config.gpus_per_worker, max_concurrency=2
        )
        worker: Any = actor.remote(self._worker_config)
        await worker.ready.remote()
        return worker

    def _connect(self) -> None:
        if not ray.is_initialized():
            ray.init(
                address=self._config.ray_address, namespace="atelier", log_to_driver=False, configure_logging=False
            )

    async def _run(self, worker: Any, assignment: Assignment) -> bool:
        """Runs one job to its end or back into the queue. Returns whether the worker is still good."""
        run = _Run(self._queue, self._files, worker, assignment)
        token = self._authority.issue(tenant=assignment.tenant, subject="trainer", lifetime_seconds=TOKEN_SECONDS)
        reporter = asyncio.create_task(run.keep_reporting())
        _log.info("job begins", job=assignment.name, attempt_from_step=assignment.checkpoint_step)
        try:
            async for event in _events(worker.run.remote(assignment, token)):
                run.take(event)
            run.done.set()
            await reporter
            await run.flush()
            await asyncio.to_thread(run.conclude)
            return True
        except ray.exceptions.RayError as error:
            _log.warning("worker lost", job=assignment.name, error=type(error).__name__)
            await asyncio.to_thread(self._queue.lose_worker, assignment.uid)
            return False
        except LeaseLostError:
            _log.warning("lease lost", job=assignment.name)
            worker.stop.remote(assignment.uid)
            return True
        except asyncio.CancelledError:
            worker.stop.remote(assignment.uid)
            with contextlib.suppress(LeaseLostError):
                self._queue.put_back(assignment.uid)
            raise
        finally:
            run.done.set()


class _Run:
    """One job under way: gathers what its worker tells and writes it to SQL now and then."""

    def __init__(self, queue: Queue, files: JobFiles, worker: Any, assignment: Assignment) -> None:
        self._queue = queue
        self._files = files
        self._worker = worker
        self._uid = assignment.uid
        self._name = assignment.name
        self._changes: dict[str, Any] = {}
        self._end: Published | Stopped | None = None
        self.done = asyncio.Event()

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
                if await self.flush() == State.CANCELLING:
                    self._worker.stop.remote(self._uid)
            except LeaseLostError:
                self._worker.stop.remote(self._uid)
                return
            except errors.UnavailableError as error:
                _log.warning("progress not recorded yet", reason=error.reason)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.done.wait(), REPORT_SECONDS)

    async def flush(self) -> State:
        """Writes what has changed, renews the lease, and drops the checkpoints that a newer one replaced."""
        changes, self._changes = self._changes, {}
        try:
            state = await asyncio.to_thread(self._queue.report, self._uid, changes)
        except errors.UnavailableError:
            self._changes = {**changes, **self._changes}
            raise
        if "checkpoint_step" in changes:
            with contextlib.suppress(errors.UnavailableError):  # the next one, or the sweep, deletes them then
                step = changes["checkpoint_step"]
                await asyncio.to_thread(self._files.delete_checkpoints, self._uid, before_step=step)
        return state

    def conclude(self) -> None:
        """Records the end that the worker told."""
        if isinstance(self._end, Published):
            self._queue.succeed(self._uid, self._end.version)
            outcome = "SUCCEEDED"
        else:
            assert self._end is not None, "a run ends with Published or Stopped"
            error = from_status(Status.FromString(self._end.status))
            self._queue.fail(self._uid, error)
            outcome = error.reason
        metrics.RUNS_ENDED.labels(outcome).inc()
        _log.info("run ends", job=self._name, outcome=outcome)


async def _events(stream: Any) -> AsyncIterator[WorkerEvent]:
    """What the worker's generator yields."""
    async for reference in stream:
        yield await reference
