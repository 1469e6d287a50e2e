"""A client process of the race: `python -m tests.harness.race.client SETTINGS INDEX`. Several threads, one journal."""

from __future__ import annotations

import faulthandler
import json
import random
import sys
import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from atelier.client import Connection
from atelier.errors import (
    AtelierError,
    CancelledError,
    DeadlineExceededError,
    InternalError,
    UnavailableError,
)
from tests.harness.race.calls import Caller, aim, choose, send
from tests.harness.race.journal import Journal, Operation, Outcome

ATTEMPTS = 4
HANG_SECONDS = 45.0
"""After the end: no call takes so long."""
_LOST = (UnavailableError, DeadlineExceededError, CancelledError)
"""Nobody knows whether what was sent was done."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """What all client processes of a race have in common. JSON in a file."""

    addresses: list[str]
    """Of the replicas."""
    tokens: dict[str, str]
    """By tenant; the operators' own by the empty name."""
    folder: str
    """For the journals."""
    threads: int
    seed: int
    end_time: float
    """Seconds since 1970."""


def main(settings: Settings, index: int) -> None:
    """Runs until the race ends; says where it hangs when it does not."""
    faulthandler.dump_traceback_later(settings.end_time - time.time() + HANG_SECONDS)
    journal = Journal(Path(settings.folder) / f"{index}.jsonl")
    with ExitStack() as stack:
        callers = {
            tenant: [Caller(stack.enter_context(Connection(address, token))) for address in settings.addresses]
            for tenant, token in settings.tokens.items()
        }
        generators = [random.Random(f"{settings.seed}/{index}/{number}") for number in range(settings.threads)]
        threads = [
            threading.Thread(target=_run, args=(generator, callers, journal, settings.end_time))
            for generator in generators
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


def _run(generator: random.Random, callers: dict[str, list[Caller]], journal: Journal, end_time: float) -> None:
    while time.time() < end_time:
        operation = choose(generator)
        replicas = callers[operation.tenant]
        try:
            if not aim(operation, generator.choice(replicas)):
                continue
        except (*_LOST, AtelierError):
            continue  # a look at what is there changes nothing; the next one is another
        journal.begin(operation)
        _carry_out(operation, generator, replicas)
        journal.end(operation)


def _carry_out(operation: Operation, generator: random.Random, replicas: list[Caller]) -> None:
    for _ in range(ATTEMPTS):
        try:
            operation.answer = send(operation, generator.choice(replicas))
            operation.outcome, operation.reason = Outcome.DONE, ""
            return
        except _LOST as error:
            operation.outcome, operation.reason = Outcome.UNKNOWN, error.reason
        except AtelierError as error:
            bug = isinstance(error, InternalError)
            operation.outcome = Outcome.REFUSED
            operation.reason = f"INTERNAL: {error.message}" if bug else error.reason
            return


if __name__ == "__main__":
    main(Settings(**json.loads(Path(sys.argv[1]).read_text())), int(sys.argv[2]))
