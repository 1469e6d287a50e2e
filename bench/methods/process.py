"""Running a process and measuring it from outside, in the same way for every contender.

What is measured: wall seconds from before the process is started until it has been waited for; its processor seconds
and peak resident memory as the kernel counted them (`wait4`); and seconds a step by the clock of *this* process, from
the step counter of its progress bar (`Steps: … 12/300 [`), the first steps left out. The peak is the kernel's maximum
over the process' life, and a process inherits the peak of the one that started it: so nothing big is imported here.
"""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from atelier.errors import FailedPreconditionError

WARM_UP_STEPS = 3
_COUNTER = re.compile(rb"Steps:[^\r\n]*?(\d+)/\d+ \[")
_TAIL_BYTES = 1500


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What a process took."""

    wall_seconds: float
    cpu_seconds: float
    peak_rss_bytes: int
    seconds_per_step: float | None
    """None when its progress bar did not show two counts after the warm-up."""


def run_measured(command: Sequence[str], *, env: Mapping[str, str], cwd: Path, log: Path) -> Measured:
    """Runs a command to its end; what it prints goes to the file `log`.

    Raises:
        FailedPreconditionError: its exit status was not 0; the message ends with the last it printed.
    """
    started = time.perf_counter()
    process = subprocess.Popen(command, env=env, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        counts = _follow(process, log)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    finally:
        if process.returncode is None:
            process.kill()
            process.wait()
    wall_seconds = time.perf_counter() - started
    if process.returncode != 0:
        tail = log.read_bytes()[-_TAIL_BYTES:].decode(errors="replace")
        raise FailedPreconditionError(f"exit status {process.returncode}: {tail}", reason="CONTENDER_FAILED")
    return Measured(
        wall_seconds=wall_seconds,
        cpu_seconds=usage.ru_utime + usage.ru_stime,
        peak_rss_bytes=usage.ru_maxrss * 1024,
        seconds_per_step=_seconds_per_step(counts),
    )


def _follow(process: subprocess.Popen[bytes], log: Path) -> list[tuple[int, float]]:
    """Copies the output to the log and returns when the step counter changed: counts and seconds."""
    assert process.stdout is not None
    counts: list[tuple[int, float]] = []
    rest = b""
    with log.open("wb") as file:
        while chunk := os.read(process.stdout.fileno(), 65536):
            now = time.perf_counter()
            file.write(chunk)
            rest = (rest + chunk)[-4096:]
            seen = _COUNTER.findall(rest)
            if seen and (not counts or int(seen[-1]) > counts[-1][0]):
                counts.append((int(seen[-1]), now))
    return counts


def _seconds_per_step(counts: Sequence[tuple[int, float]]) -> float | None:
    steady = [(step, seconds) for step, seconds in counts if step >= WARM_UP_STEPS]
    if len(steady) < 2:
        return None
    (first_step, first_seconds), (last_step, last_seconds) = steady[0], steady[-1]
    return (last_seconds - first_seconds) / (last_step - first_step)
