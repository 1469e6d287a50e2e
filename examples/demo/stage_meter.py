"""Wall time and peak memory of the parts of a program, its child processes included.

Memory is the sum of the resident sets (RSS) of the process tree, read twice a second: pages that processes share count
once for each, and a shorter peak may be missed.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import psutil

SAMPLE_SECONDS = 0.5


@dataclass(slots=True, kw_only=True)
class Stage:
    """What a part of the program took."""

    name: str
    wall_seconds: float = 0.0
    peak_rss_bytes: int = 0


@dataclass(slots=True)
class StageMeter:
    """Measures one stage after the other; `on_start` is told the name of each when it begins."""

    on_start: Callable[[str], None]
    stages: list[Stage] = field(default_factory=list)

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Measures what runs inside; a stage that raises is measured too."""
        self.on_start(name)
        stage = Stage(name=name)
        self.stages.append(stage)
        done = threading.Event()
        sampler = threading.Thread(target=_sample, args=(stage, done), daemon=True)
        start = time.perf_counter()
        sampler.start()
        try:
            yield
        finally:
            done.set()
            sampler.join()
            stage.wall_seconds = time.perf_counter() - start


def _sample(stage: Stage, done: threading.Event) -> None:
    while True:
        stage.peak_rss_bytes = max(stage.peak_rss_bytes, tree_rss_bytes())
        if done.wait(SAMPLE_SECONDS):
            return


def tree_rss_bytes() -> int:
    """Resident memory of this process and all its descendants, now."""
    this = psutil.Process()
    total = 0
    for process in [this, *this.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            total += process.memory_info().rss
    return total
