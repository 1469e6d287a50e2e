"""What the registry does by itself, at intervals: garbage, retention policies, old answers.

Every replica has a janitor; of those that wake at the same time one works. That lock only spares double work: each task
is safe when several do it, and when the process ends in the middle of it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

import structlog

from atelier.storage.database import Database, utc_now
from atelier.storage.requests import KEPT, forget_old
from services.registry import metrics, retention
from services.registry.garbage import Collector
from services.registry.tables import Request

_STOP_SECONDS = 5.0
_log = structlog.get_logger("atelier.registry")


@dataclass(frozen=True, kw_only=True, slots=True)
class JanitorConfig:
    """How often the janitor works, and how."""

    interval_seconds: float = 300.0
    """0 means never."""
    delete_grace: timedelta
    """How long what a retention policy deletes can be undeleted."""

    def __post_init__(self) -> None:
        if self.interval_seconds < 0:
            raise ValueError(f"interval_seconds: is {self.interval_seconds}; it must be 0 (never) or more")


class Janitor:
    """A thread that tidies up."""

    def __init__(self, config: JanitorConfig, database: Database, collector: Collector) -> None:
        self._config = config
        self._database = database
        self._collector = collector
        self._stopped = threading.Event()
        # A daemon: a pass may take long, and the process need not wait for its end.
        self._thread = threading.Thread(target=self._run, name="janitor", daemon=True)

    def start(self) -> None:
        """Begins to wait for the first interval's end."""
        if self._config.interval_seconds:
            self._thread.start()

    def stop(self) -> None:
        """Lets no other pass begin, and gives one that goes on a little time."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join(_STOP_SECONDS)

    def _run(self) -> None:
        while not self._stopped.wait(self._config.interval_seconds):
            self._attempt("lock", self._work)

    def _work(self) -> None:
        with self._database.try_lock("janitor") as is_mine:
            if is_mine:
                self._attempt("garbage", self._collect)
                self._attempt("retention", self._apply_retention)
                self._attempt("answers", self._forget_answers)

    def _attempt(self, task: str, work: Callable[[], None]) -> None:
        """Does a task; when it fails, the others and the next pass go on."""
        try:
            work()
        except Exception:
            metrics.JANITOR_FAILURES.inc()
            _log.exception("janitor failed", task=task)

    def _collect(self) -> None:
        collected = self._collector.collect()
        if collected.ListFields():
            _log.info("garbage collected", **{field.name: number for field, number in collected.ListFields()})

    def _apply_retention(self) -> None:
        count = retention.apply_due(self._database, grace=self._config.delete_grace)
        if count:
            _log.info("retention applied", version_count=count)

    def _forget_answers(self) -> None:
        with self._database.transaction() as session:
            forget_old(session, Request, utc_now() - KEPT)
