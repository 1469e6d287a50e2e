"""The race itself: client processes and replicas run, and are killed with SIGKILL and started again at random."""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import threading
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from atelier.errors import UnavailableError
from atelier.local.process import ManagedProcess, wait_until
from atelier.rpc.scopes import ADMIN, OPERATOR
from tests.harness.race.calls import ADAPTERS, OPERATORS, TENANTS, Caller
from tests.harness.race.client import Settings
from tests.harness.registry import RegistryServer
from tests.harness.service import ServiceProcess, health

PROCESSES = 4
THREADS = 8
"""Of each client process."""
MEAN_SECONDS_BETWEEN_KILLS = 2.0
REPLICA_SHARE = 0.4
"""Of the kills; the others meet client processes."""
MAX_UNARY_SECONDS = 5
GC_GRACE_SECONDS = 2 * MAX_UNARY_SECONDS
DELETE_GRACE_SECONDS = 3
REPLICA_OPTIONS = {
    "max-unary-seconds": MAX_UNARY_SECONDS,
    "gc-grace-seconds": GC_GRACE_SECONDS,
    "delete-grace-days": DELETE_GRACE_SECONDS / 86400,
    "janitor-seconds": 2,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Race:
    """A race that is over; all replicas run."""

    replicas: list[RegistryServer]
    journals: Path
    kills: Counter[str]


def run_race(replicas: list[RegistryServer], folder: Path, *, seconds: float, seed: int) -> Race:
    """Lets everybody run for so long."""
    _create_adapters(replicas[0])
    settings = Settings(
        addresses=[replica.address for replica in replicas],
        tokens={tenant: replicas[0].token(tenant, ADMIN) for tenant in TENANTS}
        | {"": replicas[0].token(OPERATORS, OPERATOR)},
        folder=str(folder),
        threads=THREADS,
        seed=seed,
        end_time=time.time() + seconds,
    )
    path = folder / "settings.json"
    path.write_text(json.dumps(asdict(settings)))
    clients = _Clients(path, folder)
    kills = _kill_at_random(clients, replicas, settings)
    clients.wait()
    wait_until(lambda: all(map(_answers, replicas)), timeout_seconds=60, what="the replicas answer")
    return Race(replicas=replicas, journals=folder, kills=kills)


class _Clients:
    """The client processes, each with a number that no other has had."""

    def __init__(self, settings: Path, folder: Path) -> None:
        self._settings = settings
        self._folder = folder
        self._count = 0
        self._running = [self._start() for _ in range(PROCESSES)]

    def _start(self) -> ManagedProcess:
        command = [sys.executable, "-m", "tests.harness.race.client", str(self._settings), str(self._count)]
        process = ManagedProcess("client", command, self._folder / f"client-{self._count}.log")
        process.start()
        self._count += 1
        return process

    def kill_one(self, generator: random.Random) -> None:
        """Kills one; another takes its place."""
        index = generator.randrange(PROCESSES)
        os.kill(self._running[index].pid, signal.SIGKILL)
        self._running[index].stop()
        self._running[index] = self._start()

    def wait(self) -> None:
        """Returns when all have ended, and none by an error of its own."""
        for process in self._running:
            assert psutil.Process(process.pid).wait(timeout=60) == 0, process.log_tail()


def _kill_at_random(clients: _Clients, replicas: list[RegistryServer], settings: Settings) -> Counter[str]:
    generator = random.Random(settings.seed)
    kills: Counter[str] = Counter()
    never = threading.Event()
    while True:
        never.wait(generator.expovariate(1 / MEAN_SECONDS_BETWEEN_KILLS))  # a moment that nobody foresees
        if time.time() >= settings.end_time:
            return kills
        replica = generator.choice(replicas)
        others = [health(other.address) for other in replicas if other is not replica]
        if generator.random() < REPLICA_SHARE and "SERVING" in others:  # nothing is tried while nobody answers
            replica.kill()
            replica.process.start()
            kills["replicas"] += 1
        else:
            clients.kill_one(generator)
            kills["clients"] += 1


def _create_adapters(replica: ServiceProcess) -> None:
    for tenant in TENANTS:
        with replica.connect(tenant) as connection:
            for adapter in ADAPTERS:
                Caller(connection).sdk.create_adapter(adapter)


def _answers(replica: ServiceProcess) -> bool:
    with replica.connect(TENANTS[0]) as connection:
        try:
            Caller(connection).sdk.tenant()
        except UnavailableError:
            return False
    return True
