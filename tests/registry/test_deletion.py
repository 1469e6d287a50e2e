"""Deleting, undeleting and purging adapters and versions."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest

from atelier.client import RegistryClient
from atelier.errors import (
    AbortedError,
    AlreadyExistsError,
    AtelierError,
    FailedPreconditionError,
    NotFoundError,
    PermissionDeniedError,
)
from atelier.pb.registry.v1 import registry_pb2 as pb
from atelier.pb.registry.v1.registry_pb2_grpc import RegistryServiceStub
from atelier.rpc.status import translated_errors
from tests.harness.files import adapter_files, version
from tests.harness.registry import RegistryServer
from tests.registry.lifecycle import (
    delete_fox,
    delete_version,
    fox_alias,
    fox_version,
    publish_foxes,
    refused,
    visible_numbers,
)
from tests.registry.uploads import OWN_FOX, declared, upload

ROUNDS = 20
USES_OF_AN_ADAPTER: dict[str, Callable[[RegistryServiceStub], object]] = {
    "update": lambda stub: stub.UpdateAdapter(pb.UpdateAdapterRequest(adapter=pb.Adapter(name=OWN_FOX))),
    "delete": lambda stub: stub.DeleteAdapter(pb.DeleteAdapterRequest(name=OWN_FOX, force=True)),
    "publish": lambda stub: stub.PublishVersion(upload(version(files=declared(adapter_files())))),
    "resolve latest": lambda stub: stub.ResolveVersion(pb.ResolveVersionRequest(adapter=OWN_FOX)),
    "resolve number": lambda stub: stub.ResolveVersion(pb.ResolveVersionRequest(adapter=OWN_FOX, reference="1")),
    "resolve alias": lambda stub: stub.ResolveVersion(pb.ResolveVersionRequest(adapter=OWN_FOX, reference="prod")),
    "download": lambda stub: list(
        stub.DownloadFile(pb.DownloadFileRequest(version=fox_version(1), path="README.md")),
    ),
    "delete version": lambda stub: stub.DeleteVersion(pb.DeleteVersionRequest(name=fox_version(2))),
    "undelete version": lambda stub: stub.UndeleteVersion(pb.UndeleteVersionRequest(name=fox_version(2))),
    "move alias": lambda stub: stub.UpdateAlias(
        pb.UpdateAliasRequest(alias=pb.Alias(name=fox_alias("prod"), version=fox_version(2)))
    ),
    "get alias": lambda stub: stub.GetAlias(pb.GetAliasRequest(name=fox_alias("prod"))),
    "list aliases": lambda stub: stub.ListAliases(pb.ListAliasesRequest(parent=OWN_FOX)),
    "delete alias": lambda stub: stub.DeleteAlias(pb.DeleteAliasRequest(name=fox_alias("prod"))),
    "retain": lambda stub: stub.ApplyRetention(pb.ApplyRetentionRequest(parent=OWN_FOX)),
}


def purge(stub: RegistryServiceStub, parent: str = "tenants/-") -> pb.PurgeDeletedResponse:
    """Removes for good what the tenant, or an adapter, has deleted."""
    with translated_errors():
        return stub.PurgeDeleted(pb.PurgeDeletedRequest(parent=parent))


def test_deleted_adapter_is_gone_until_it_is_undeleted(
    registry: RegistryClient, registry_stub: RegistryServiceStub
) -> None:
    published = publish_foxes(registry, 2)
    alias = registry.set_alias("fox", "prod", "1")
    before = registry.adapter("fox")
    deleted = delete_fox(registry_stub)
    assert deleted.purge_time.ToDatetime() - deleted.delete_time.ToDatetime() == timedelta(days=30)
    assert registry.adapter("fox") == deleted
    assert list(registry.adapters()) == []
    assert registry.tenant().adapter_count == 0

    restored = registry_stub.UndeleteAdapter(pb.UndeleteAdapterRequest(name=OWN_FOX))
    assert restored.etag not in (before.etag, deleted.etag)
    restored.etag = before.etag
    assert restored == before
    assert list(registry.versions("fox")) == published[::-1]
    assert list(registry.aliases("fox")) == [alias]


@pytest.mark.parametrize("use", USES_OF_AN_ADAPTER.values(), ids=USES_OF_AN_ADAPTER.keys())
def test_deleted_adapter_serves_nothing_and_says_why(
    registry: RegistryClient, registry_stub: RegistryServiceStub, use: Callable[[RegistryServiceStub], object]
) -> None:
    publish_foxes(registry, 2)
    registry.set_alias("fox", "prod", "1")
    delete_fox(registry_stub)
    with pytest.raises(FailedPreconditionError, match="undelete") as caught, translated_errors():
        use(registry_stub)
    assert caught.value.reason == "ADAPTER_DELETED"


def test_version_of_a_deleted_adapter_can_still_be_looked_at(
    registry: RegistryClient, registry_stub: RegistryServiceStub
) -> None:
    published = publish_foxes(registry, 1)
    delete_fox(registry_stub)
    assert registry_stub.GetVersion(pb.GetVersionRequest(name=fox_version(1))) == published[0]


def test_name_of_a_deleted_adapter_is_taken_until_it_is_purged(
    registry: RegistryClient, registry_stub: RegistryServiceStub
) -> None:
    registry.create_adapter("fox")
    delete_fox(registry_stub)
    with pytest.raises(AlreadyExistsError, match="undelete or purge it"):
        registry.create_adapter("fox")
    purge(registry_stub)
    registry.create_adapter("fox")


def test_adapter_with_versions_is_deleted_only_by_force(
    registry: RegistryClient, registry_stub: RegistryServiceStub
) -> None:
    publish_foxes(registry, 1)
    with refused(FailedPreconditionError, "ADAPTER_HAS_VERSIONS"):
        registry_stub.DeleteAdapter(pb.DeleteAdapterRequest(name=OWN_FOX))
    delete_version(registry_stub, 1)
    registry_stub.DeleteAdapter(pb.DeleteAdapterRequest(name=OWN_FOX))


def test_adapter_is_deleted_only_from_the_state_that_the_caller_knows(
    registry: RegistryClient, registry_stub: RegistryServiceStub
) -> None:
    etag = registry.create_adapter("fox").etag
    registry.publish("fox", version(), adapter_files())
    with refused(AbortedError, "ETAG_MISMATCH"):
        registry_stub.DeleteAdapter(pb.DeleteAdapterRequest(name=OWN_FOX, etag=etag, force=True))
    current = registry.adapter("fox").etag
    assert registry_stub.DeleteAdapter(pb.DeleteAdapterRequest(name=OWN_FOX, etag=current, force=True)).delete_time


def test_of_many_who_delete_an_adapter_one_does(registry: RegistryClient, registry_stub: RegistryServiceStub) -> None:
    registry.create_adapter("fox")

    def attempt(_: int) -> str:
        try:
            delete_fox(registry_stub)
        except FailedPreconditionError as error:
            return error.reason
        return "deleted"

    with ThreadPoolExecutor(8) as pool:
        assert sorted(pool.map(attempt, range(8))) == ["ADAPTER_DELETED"] * 7 + ["deleted"]


def test_deleted_version_is_gone_until_it_is_undeleted(
    registry: RegistryClient, registry_stub: RegistryServiceStub
) -> None:
    published = publish_foxes(registry, 2)
    deleted = delete_version(registry_stub, 1)
    assert deleted.purge_time.ToDatetime() - deleted.delete_time.ToDatetime() == timedelta(days=30)
    assert registry_stub.GetVersion(pb.GetVersionRequest(name=fox_version(1))) == deleted
    assert list(registry.versions("fox")) == published[1:]
    with refused(FailedPreconditionError, "VERSION_DELETED"):
        registry.resolve("fox@1")
    with refused(FailedPreconditionError, "VERSION_DELETED"):
        list(registry_stub.DownloadFile(pb.DownloadFileRequest(version=fox_version(1), path="README.md")))
    with refused(FailedPreconditionError, "VERSION_DELETED"):
        registry.set_alias("fox", "prod", "1")
    with refused(FailedPreconditionError, "VERSION_DELETED"):
        delete_version(registry_stub, 1)

    restored = registry_stub.UndeleteVersion(pb.UndeleteVersionRequest(name=fox_version(1)))
    assert restored == published[0] == registry.resolve("fox@1")
    assert registry.download(restored, "recipe.json") == adapter_files()["recipe.json"]


def test_undeleting_what_is_not_deleted_is_refused(
    registry: RegistryClient, registry_stub: RegistryServiceStub
) -> None:
    publish_foxes(registry, 1)
    with refused(AlreadyExistsError, "VERSION_NOT_DELETED"):
        registry_stub.UndeleteVersion(pb.UndeleteVersionRequest(name=fox_version(1)))
    with refused(AlreadyExistsError, "ADAPTER_NOT_DELETED"):
        registry_stub.UndeleteAdapter(pb.UndeleteAdapterRequest(name=OWN_FOX))


def test_latest_is_the_newest_version_that_is_not_deleted(
    registry: RegistryClient, registry_stub: RegistryServiceStub
) -> None:
    publish_foxes(registry, 3)
    etags = {registry.adapter("fox").etag}
    for change, latest in (
        (lambda: delete_version(registry_stub, 3), "2"),
        (lambda: delete_version(registry_stub, 2), "1"),
        (lambda: registry_stub.UndeleteVersion(pb.UndeleteVersionRequest(name=fox_version(3))), "3"),
        (lambda: registry.publish("fox", version(), adapter_files(7)), "4"),
    ):
        change()
        adapter = registry.adapter("fox")
        assert adapter.latest_version.rsplit("/", 1)[1] == latest
        assert registry.resolve("fox").name == registry.resolve("fox@latest").name == adapter.latest_version
        etags.add(adapter.etag)
    assert len(etags) == 5
    for number in (1, 3, 4):
        delete_version(registry_stub, number)
    assert registry.adapter("fox").latest_version == ""
    with refused(FailedPreconditionError, "ADAPTER_HAS_NO_VERSION"):
        registry.resolve("fox")


def test_numbers_are_never_used_again(registry: RegistryClient, registry_stub: RegistryServiceStub) -> None:
    publish_foxes(registry, 2)
    delete_version(registry_stub, 2)
    assert registry.publish("fox", version(), adapter_files(2)).name.endswith("/3")
    delete_version(registry_stub, 3)
    assert len(purge(registry_stub).versions) == 2
    assert registry.publish("fox", version(), adapter_files(2)).name.endswith("/4")
    assert visible_numbers(registry) == [4, 1]


def test_version_at_which_an_alias_points_is_not_deleted(
    registry: RegistryClient, registry_stub: RegistryServiceStub, tenant: str
) -> None:
    publish_foxes(registry, 2)
    for alias in ("prod", "best"):
        registry.set_alias("fox", alias, "1")
    with pytest.raises(FailedPreconditionError) as caught:
        delete_version(registry_stub, 1)
    assert caught.value.reason == "VERSION_ALIASED"
    names = [f"tenants/{tenant}/adapters/fox/aliases/{alias}" for alias in ("best", "prod")]
    assert caught.value.metadata["aliases"].split(",") == names
    registry.set_alias("fox", "prod", "2")
    registry_stub.DeleteAlias(pb.DeleteAliasRequest(name=fox_alias("best")))
    delete_version(registry_stub, 1)


def test_alias_that_moves_while_its_version_is_deleted_never_dangles(
    registry: RegistryClient, registry_stub: RegistryServiceStub
) -> None:
    publish_foxes(registry, 2)
    registry.set_alias("fox", "prod", "1")

    def outcome(work: Callable[[], object]) -> str:
        try:
            work()
        except FailedPreconditionError as error:
            return error.reason
        return "done"

    seen = set()
    with ThreadPoolExecutor(2) as pool:
        for _ in range(ROUNDS):
            moved, deleted = pool.map(
                outcome, (lambda: registry.set_alias("fox", "prod", "2"), lambda: delete_version(registry_stub, 2))
            )
            seen.add((moved, deleted))
            assert not registry.resolve("fox@prod").HasField("delete_time")
            if deleted == "done":
                registry_stub.UndeleteVersion(pb.UndeleteVersionRequest(name=fox_version(2)))
            registry.set_alias("fox", "prod", "1")
    assert seen <= {("done", "VERSION_ALIASED"), ("VERSION_DELETED", "done")}


def test_purging_removes_what_is_deleted_and_nothing_else(
    registry: RegistryClient, registry_stub: RegistryServiceStub, tenant: str
) -> None:
    published = publish_foxes(registry, 3)
    registry.create_adapter("cat")
    registry.publish("cat", version(), adapter_files(9))
    delete_version(registry_stub, 3)
    registry_stub.DeleteAdapter(pb.DeleteAdapterRequest(name="tenants/-/adapters/cat", force=True))
    purged = purge(registry_stub)
    assert list(purged.adapters) == [f"tenants/{tenant}/adapters/cat"]
    assert list(purged.versions) == [
        f"tenants/{tenant}/adapters/{name}" for name in ("cat/versions/1", "fox/versions/3")
    ]
    for name in purged.versions:
        with pytest.raises(NotFoundError), translated_errors():
            registry_stub.GetVersion(pb.GetVersionRequest(name=name))
    with refused(NotFoundError, "ADAPTER_NOT_FOUND"):
        registry.adapter("cat")
    with refused(NotFoundError, "VERSION_NOT_FOUND"):
        registry_stub.UndeleteVersion(pb.UndeleteVersionRequest(name=fox_version(3)))
    assert list(registry.versions("fox")) == published[1::-1]
    assert purge(registry_stub) == pb.PurgeDeletedResponse()


def test_quota_counts_what_is_deleted_until_it_is_purged(
    registry: RegistryClient, registry_stub: RegistryServiceStub
) -> None:
    publish_foxes(registry, 1)
    one = registry.tenant()
    registry.publish("fox", version(), adapter_files(1))
    two = registry.tenant()
    assert (two.version_count, one.version_count) == (2, 1)
    delete_version(registry_stub, 2)
    assert registry.tenant() == two
    purge(registry_stub)
    assert registry.tenant() == one


def test_purging_one_adapter_leaves_the_others(registry: RegistryClient, registry_stub: RegistryServiceStub) -> None:
    publish_foxes(registry, 2)
    delete_version(registry_stub, 1)
    registry.create_adapter("cat")
    registry_stub.DeleteAdapter(pb.DeleteAdapterRequest(name="tenants/-/adapters/cat"))
    purged = purge(registry_stub, OWN_FOX)
    assert ([name.rsplit("/", 1)[1] for name in purged.versions], list(purged.adapters)) == (["1"], [])
    assert registry.adapter("cat").HasField("delete_time")
    with refused(NotFoundError, "ADAPTER_NOT_FOUND"):
        purge(registry_stub, "tenants/-/adapters/nobody")


def test_purged_adapter_takes_its_aliases_and_their_history_with_it(
    registry: RegistryClient, registry_stub: RegistryServiceStub
) -> None:
    publish_foxes(registry, 1)
    registry.set_alias("fox", "prod", "1")
    delete_fox(registry_stub)
    purge(registry_stub)
    publish_foxes(registry, 1)
    assert list(registry.aliases("fox")) == []
    assert not registry_stub.ListAliasMoves(pb.ListAliasMovesRequest(parent=OWN_FOX)).moves


def test_one_tenant_purges_nothing_of_another(
    registry: RegistryClient, registry_stub: RegistryServiceStub, registry_server: RegistryServer, tenant: str
) -> None:
    registry.create_adapter("fox")
    deleted = delete_fox(registry_stub)
    with registry_server.connect(f"{tenant}-2") as connection:
        stranger = RegistryServiceStub(connection.channel)
        assert purge(stranger) == pb.PurgeDeletedResponse()
        for parent in (f"tenants/{tenant}", deleted.name):
            with pytest.raises(PermissionDeniedError):
                purge(stranger, parent)
    assert registry.adapter("fox") == deleted


@pytest.mark.parametrize(
    "use",
    [
        lambda stub: stub.DeleteAdapter(pb.DeleteAdapterRequest(name=OWN_FOX)),
        lambda stub: stub.UndeleteAdapter(pb.UndeleteAdapterRequest(name=OWN_FOX)),
        lambda stub: stub.DeleteVersion(pb.DeleteVersionRequest(name=fox_version(1))),
        lambda stub: stub.UndeleteVersion(pb.UndeleteVersionRequest(name=fox_version(1))),
        lambda stub: stub.PurgeDeleted(pb.PurgeDeletedRequest(parent=OWN_FOX)),
    ],
)
def test_what_is_not_there_is_not_found(
    registry_stub: RegistryServiceStub, use: Callable[[RegistryServiceStub], object]
) -> None:
    with pytest.raises(AtelierError) as caught, translated_errors():
        use(registry_stub)
    assert (type(caught.value), caught.value.reason) == (NotFoundError, "ADAPTER_NOT_FOUND")
