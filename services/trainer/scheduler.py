"""Runs queued jobs on Ray: one loop a worker, each claiming a job and seeing it through.

The SQL rows are the truth; Ray's memory holds nothing that a restart would miss. A worker that dies is replaced, and
its job goes back into the queue. When the Ray cluster itself is lost for good, Ray ends this process: whoever keeps
the trainer running starts it again, and the jobs' leases run out meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import ray
import structlog

from atelier import errors
from atelier.rpc.identity import TokenAuthority
from atelier.rpc.scopes import PUBLISHER
from atelier.rpc.status import to_status
from services.trainer.base_models import BaseModels
from services.trainer.queue import Assignment, LeaseLostError, Queue
from services.trainer.running import RunningJob
from services.trainer.sweeper import Sweeper
from services.trainer.worker import Stopped, TrainingWorker, WorkerConfig, WorkerEvent

POLL_SECONDS = 0.3
RETRY_SECONDS = 2.0
SWEEP_SECONDS = 5.0
TOKEN_SECONDS = 24 * 3600.0
Result = TypeVar("Result")
_log = structlog.get_logger("atelier.scheduler")


@dataclass(frozen=True, kw_only=True, slots=True)
class SchedulerConfig:
    """How many jobs run at once, and where."""

    ray_address: str
    num_workers: int
    gpus_per_worker: float | None
    """0 trains on CPUs; None means 1 where the cluster has GPUs."""


class Scheduler:
    """Keeps `num_workers` loops going until it is stopped."""

    def __init__(
        self, config: SchedulerConfig, worker: WorkerConfig, queue: Queue, sweeper: Sweeper, authority: TokenAuthority
    ) -> None:
        self._config = config
        self._worker_config = worker
        self._base_models = BaseModels(worker.registry, authority, worker.bases)
        self._queue = queue
        self._sweeper = sweeper
        self._authority = authority
        self._tasks: list[asyncio.Task[None]] = []
        self._connecting = asyncio.Lock()
        # Threads of its own: leases are renewed in time however busy the RPCs are.
        self._threads = ThreadPoolExecutor(2 * config.num_workers + 1, thread_name_prefix="scheduler")

    def start(self) -> None:
        """Starts the loops; Ray may come later."""
        loops = [self._loop() for _ in range(self._config.num_workers)]
        self._tasks = [asyncio.create_task(work) for work in (*loops, self._sweep())]

    async def stop(self) -> None:
        """Puts running jobs back into the queue and lets the workers go."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.to_thread(ray.shutdown)

    async def _loop(self) -> None:
        worker: Any = None
        while True:
            try:
                worker = worker or await self._new_worker()
                claim = await self._in_thread(self._queue.claim)
                if claim is None:
                    await asyncio.sleep(POLL_SECONDS)
                elif not await self._run(worker, claim):
                    worker = None
            except errors.UnavailableError as error:
                _log.warning("waiting", reason=error.reason)
                await asyncio.sleep(RETRY_SECONDS)
            except Exception:
                _log.exception("scheduling failed; trying again")
                worker = None
                await asyncio.sleep(RETRY_SECONDS)

    async def _sweep(self) -> None:
        while True:
            try:
                await asyncio.to_thread(self._sweeper.sweep)
            except errors.UnavailableError as error:
                _log.warning("files stay for now", reason=error.reason)
            except Exception:
                _log.exception("sweeping failed; trying again")
            await asyncio.sleep(SWEEP_SECONDS)

    async def _new_worker(self) -> Any:
        async with self._connecting:
            await asyncio.to_thread(self._connect)
        gpus = self._config.gpus_per_worker
        if gpus is None:
            gpus = 1.0 if ray.cluster_resources().get("GPU") else 0.0
        actor: Any = ray.remote(TrainingWorker).options(num_cpus=1, num_gpus=gpus, max_concurrency=2)
        worker = actor.remote(self._worker_config)
        try:
            await worker.warm_up.remote()
        except ray.exceptions.RayTaskError:
            _log.exception("the first base model cannot be loaded; jobs for it will say so")
        return worker

    def _connect(self) -> None:
        if not ray.is_initialized():
            ray.init(
                address=self._config.ray_address, namespace="atelier", log_to_driver=False, configure_logging=False
            )

    async def _run(self, worker: Any, claim: Assignment) -> bool:
        """Runs one job to its end or back into the queue. Returns whether the worker is still good."""
        job = RunningJob(self._queue, self._in_thread, worker, claim)
        reporter = asyncio.create_task(job.keep_reporting())
        _log.info("job begins", job=claim.name, attempt=claim.attempt, from_step=claim.checkpoint_step)
        try:
            async for event in self._events(worker, claim):
                job.take(event)
            job.done.set()
            await reporter
            await job.conclude()
            return True
        except ray.exceptions.RayError as error:
            _log.warning("worker lost", job=claim.name, error=type(error).__name__)
            await self._in_thread(lambda: self._queue.lose_worker(claim))
            return False
        except LeaseLostError:
            _log.warning("lease lost", job=claim.name)
            return True
        except asyncio.CancelledError:
            worker.stop.remote(claim.uid, claim.attempt)
            with contextlib.suppress(LeaseLostError):
                self._queue.put_back(claim)
            raise
        finally:
            job.done.set()

    async def _events(self, worker: Any, claim: Assignment) -> AsyncIterator[WorkerEvent]:
        """What the worker's generator yields, once the registry knows the base model or is away.

        A registry that is away need not know before the adapter is published; training goes on without it.
        """
        try:
            await self._in_thread(lambda: self._base_models.tell(claim))
        except (errors.UnavailableError, errors.DeadlineExceededError) as error:
            _log.warning("the registry is not told of the base model", job=claim.name, reason=error.reason)
        except errors.AtelierError as error:
            yield Stopped(status=to_status(error).SerializeToString())
            return
        token = self._authority.issue(
            tenant=claim.tenant, subject=claim.subject, scopes=[PUBLISHER], lifetime_seconds=TOKEN_SECONDS
        )
        async for reference in worker.run.remote(claim, token):
            yield await reference

    async def _in_thread(self, work: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)
