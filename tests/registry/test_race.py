"""Thirty-two clients and two replicas that are killed at random, on one PostgreSQL and one bucket: nothing is lost.

Clients publish versions of shared contents, move aliases by etag, delete, undelete, purge, apply retention and collect
garbage, with grace periods of seconds. Afterwards every claim of the registry is checked against what was told to
clients, what is in SQL and what is in S3. The seed chooses what clients do and who is killed, not how threads take
turns: a failure says with which seed it came.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from atelier.local.postgres import Postgres
from atelier.local.seaweedfs import SeaweedFS
from tests.harness.race.arena import REPLICA_OPTIONS, run_race
from tests.harness.race.verdict import Verdict, bugs_told, summary
from tests.harness.registry import RegistryServer
from tests.registry.store import database_of

REPLICAS = 2


@pytest.fixture
def replicas(
    postgres: Postgres, seaweedfs: SeaweedFS, signing_key_file: Path, manifest_key_file: Path, tmp_path: Path
) -> Iterator[list[RegistryServer]]:
    """On a database and a bucket of their own."""
    options = {
        **REPLICA_OPTIONS,
        "database-url": postgres.create_database(),
        "manifest-key-file": manifest_key_file,
    }
    folders = [tmp_path / f"replica-{index}" for index in range(REPLICAS)]
    servers = [RegistryServer(folder, seaweedfs.s3_config("race"), signing_key_file, options) for folder in folders]
    with ExitStack() as stack:
        for server in servers:
            stack.callback(server.stop)
            server.start()
        yield servers


@pytest.mark.parametrize(
    ("seconds", "seed"),
    [
        pytest.param(20, 1, id="short"),
        pytest.param(120, 2, id="long", marks=[pytest.mark.slow, pytest.mark.timeout(900)]),
    ],
)
def test_nothing_is_lost(
    seconds: int, seed: int, replicas: list[RegistryServer], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    journals = tmp_path / "journals"
    journals.mkdir()
    race = run_race(replicas, journals, seconds=seconds, seed=seed)
    with capsys.disabled():
        print(f"\n{seconds} s, seed {seed}: {summary(race)}")
    assert {"clients", "replicas"} <= set(race.kills)
    assert bugs_told(race) == []
    with database_of(replicas[0]) as database:
        verdict = Verdict(race, database)
        assert verdict.lost_publishes() == []
        assert verdict.unknown_publishes() == []
        assert verdict.versions_that_are_there_twice() == []
        assert verdict.broken_files() == []
        assert verdict.dangling_aliases() == []
        assert verdict.wrong_counters() == []
        verdict.collect_all()
        assert verdict.leftovers() == []
        assert verdict.wrong_counters() == []
        assert verdict.broken_files() == []
        assert verdict.rot() == []
