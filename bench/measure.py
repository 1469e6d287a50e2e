"""Timing contenders against each other, and saying on what machine.

Contenders take turns, so that a machine whose speed drifts drifts for all of them; what is quoted is the median and
the median of the ratios of neighbouring turns.
"""

from __future__ import annotations

import gc
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import psutil
import torch

PACKAGES = ("torch", "diffusers", "peft", "transformers")


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """Seconds of a contender's turns, in order."""

    name: str
    seconds: tuple[float, ...]

    @property
    def median_seconds(self) -> float:
        return statistics.median(self.seconds)

    def speedup_over(self, other: Result) -> float:
        """How many times faster this one is: the median over neighbouring turns."""
        return statistics.median(theirs / own for own, theirs in zip(self.seconds, other.seconds, strict=True))


def take_turns(
    contenders: Mapping[str, Callable[[], object]],
    *,
    turns: int,
    warm_up: int = 1,
    clean_up: Callable[[], object] = lambda: None,
) -> list[Result]:
    """Times each contender `turns` times, A B A B …, after `warm_up` turns that do not count.

    `clean_up()` follows every round of turns and is not timed.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(warm_up + turns):
        for name, work in contenders.items():
            elapsed = _timed(work)
            if turn >= warm_up:
                seconds[name].append(elapsed)
        clean_up()
    return [Result(name=name, seconds=tuple(values)) for name, values in seconds.items()]


def _timed(work: Callable[[], object]) -> float:
    _synchronize()
    start = time.perf_counter()
    work()
    _synchronize()
    return time.perf_counter() - start


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def peak_resident_bytes(pid: int | str = "self") -> int:
    """The most memory that a process has had resident since it started."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def peak_memory_bytes() -> int:
    """The most memory since the reset, or since the start: allocated on the GPU where there is one, else resident.

    Not `ru_maxrss`: a process inherits that of the one that started it.
    """
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return peak_resident_bytes()


def reset_peak_memory() -> None:
    """Gives back what nobody holds any more, and starts `peak_memory_bytes` anew."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # proc(5): the peak resident set size becomes the present one


def machine(packages: Sequence[str] = PACKAGES) -> str:
    """Processor, memory, GPU and versions, in a line."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    memory = round(psutil.virtual_memory().total / 2**30)
    versions = ", ".join(f"{package} {version(package)}" for package in packages)
    cores = psutil.cpu_count()
    threads = torch.get_num_threads()
    return (
        f"{_processor()}, {cores} cores, {threads} torch threads, {memory} GiB, {device}; "
        f"Python {platform.python_version()}, {versions}"
    )


def _processor() -> str:
    with open("/proc/cpuinfo") as lines:
        models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()
