"""What the registry does by itself: it applies policies, and purges what has been deleted for long enough."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from atelier.client import Connection, RegistryClient
from atelier.errors import NotFoundError
from atelier.local.process import wait_until
from atelier.local.seaweedfs import SeaweedFS
from atelier.pb.registry.v1 import registry_pb2 as pb
from atelier.pb.registry.v1.registry_pb2_grpc import RegistryServiceStub
from atelier.rpc.status import translated_errors
from atelier.storage.database import Database, utc_now
from services.registry.deletion import PurgeCounts, purge_expired
from services.registry.main import MIGRATIONS
from tests.harness.registry import BUCKET, RegistryServer
from tests.registry.lifecycle import delete_fox, delete_version, fox_version, publish_foxes, visible_numbers
from tests.registry.uploads import OWN_FOX

GRACE_SECONDS = 0.5
SECONDS_A_DAY = 86_400


@pytest.fixture(scope="module")
def quick_server(
    seaweedfs: SeaweedFS, signing_key_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RegistryServer]:
    """A registry whose janitor never rests."""
    options = {"delete-grace-days": GRACE_SECONDS / SECONDS_A_DAY, "janitor-seconds": 0.2}
    folder = tmp_path_factory.mktemp("quick")
    server = RegistryServer(folder, seaweedfs.s3_config(BUCKET), signing_key_file, options)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def quick_connection(quick_server: RegistryServer, tenant: str) -> Iterator[Connection]:
    """The test's tenant at that registry."""
    with quick_server.connect(tenant) as connection:
        yield connection


def eventually(condition: Callable[[], bool], what: str) -> None:
    """Waits for a few passes of the janitor."""
    wait_until(condition, timeout_seconds=20, what=what)


def is_gone(ask: Callable[[], object]) -> bool:
    """Whether it is NOT_FOUND."""
    try:
        with translated_errors():
            ask()
    except NotFoundError:
        return True
    return False


def test_what_is_deleted_is_purged_when_its_time_has_come(quick_connection: Connection) -> None:
    registry, stub = RegistryClient(quick_connection), RegistryServiceStub(quick_connection.channel)
    publish_foxes(registry, 2)
    deleted = delete_version(stub, 1)
    assert deleted.purge_time.ToDatetime() - deleted.delete_time.ToDatetime() == timedelta(seconds=GRACE_SECONDS)
    eventually(lambda: is_gone(lambda: stub.GetVersion(pb.GetVersionRequest(name=deleted.name))), "version 1 is purged")
    assert visible_numbers(registry) == [2]
    delete_fox(stub)
    eventually(lambda: is_gone(lambda: registry.adapter("fox")), "the adapter is purged")
    tenant = registry.tenant()
    assert (tenant.adapter_count, tenant.version_count, tenant.stored_bytes) == (0, 0, 0)


def test_policies_are_applied(quick_connection: Connection) -> None:
    registry, stub = RegistryClient(quick_connection), RegistryServiceStub(quick_connection.channel)
    publish_foxes(registry, 4)
    registry.set_alias("fox", "prod", "2")
    policy = pb.Adapter(name=OWN_FOX, retention=pb.RetentionPolicy(keep_last=1))
    stub.UpdateAdapter(pb.UpdateAdapterRequest(adapter=policy))
    eventually(lambda: visible_numbers(registry) == [4, 2], "versions 1 and 3 are deleted")
    eventually(
        lambda: is_gone(lambda: stub.GetVersion(pb.GetVersionRequest(name=fox_version(3)))), "version 3 is purged"
    )
    assert visible_numbers(registry) == [4, 2]


def test_adapter_that_is_purged_in_part_can_still_be_undeleted(
    registry: RegistryClient, registry_stub: RegistryServiceStub, registry_server: RegistryServer
) -> None:
    publish_foxes(registry, 5)
    delete_version(registry_stub, 5)
    registry.set_alias("fox", "prod", "2")
    registry.set_alias("fox", "best", "4")
    delete_fox(registry_stub)
    database = Database(registry_server.database_url, MIGRATIONS)
    later = utc_now() + timedelta(days=31)

    def purge() -> PurgeCounts:
        with database.transaction() as session:
            return purge_expired(session, later, limit=2)

    while not is_gone(lambda: registry_stub.GetVersion(pb.GetVersionRequest(name=fox_version(1)))):
        purge()
    restored = registry_stub.UndeleteAdapter(pb.UndeleteAdapterRequest(name=OWN_FOX))
    assert restored.latest_version.endswith("/4")
    assert visible_numbers(registry) == [4, 3]
    assert [alias.name.rsplit("/", 1)[1] for alias in registry.aliases("fox")] == ["best"]
    delete_fox(registry_stub)
    while purge() != PurgeCounts():
        pass
    assert is_gone(lambda: registry.adapter("fox"))
    database.close()
