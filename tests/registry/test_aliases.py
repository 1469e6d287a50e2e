"""Aliases and references: they move as one, only from where the caller believes them to be, and leave a trace."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from atelier.client import Connection, RegistryClient
from atelier.errors import AbortedError, FailedPreconditionError, InvalidArgumentError, NotFoundError
from atelier.pb.registry.v1 import registry_pb2 as pb
from atelier.pb.registry.v1.registry_pb2_grpc import RegistryServiceStub
from atelier.rpc.identity import TokenAuthority
from atelier.rpc.scopes import PUBLISHER
from atelier.rpc.status import translated_errors
from tests.harness.files import adapter_files, version
from tests.harness.registry import RegistryServer
from tests.registry.lifecycle import fox_alias, publish_foxes, refused
from tests.registry.uploads import OWN_FOX

RACERS = 16


@pytest.fixture
def three_versions(registry: RegistryClient) -> list[pb.Version]:
    """The adapter `fox` with versions 1, 2 and 3."""
    return publish_foxes(registry, 3)


def test_alias_is_created_and_moved(registry: RegistryClient, three_versions: list[pb.Version], tenant: str) -> None:
    created = registry.set_alias("fox", "prod", "1")
    assert created.name == f"tenants/{tenant}/adapters/fox/aliases/prod"
    assert registry.resolve("fox@prod") == three_versions[0]
    moved = registry.set_alias("fox", "prod", "3", etag=created.etag)
    assert moved.etag != created.etag
    assert registry.resolve("fox@prod") == three_versions[2]
    assert list(registry.aliases("fox")) == [moved]


def test_move_to_where_it_points_already_changes_nothing(
    registry: RegistryClient, three_versions: list[pb.Version]
) -> None:
    assert registry.set_alias("fox", "prod", "1") == registry.set_alias("fox", "prod", "1")


def test_stale_etag_moves_nothing(registry: RegistryClient, three_versions: list[pb.Version]) -> None:
    stale = registry.set_alias("fox", "prod", "1").etag
    current = registry.set_alias("fox", "prod", "2")
    with pytest.raises(AbortedError) as caught:
        registry.set_alias("fox", "prod", "3", etag=stale)
    assert caught.value.reason == "ETAG_MISMATCH"
    assert list(registry.aliases("fox")) == [current]


def test_etag_of_an_alias_that_is_not_there_creates_nothing(
    registry: RegistryClient, registry_stub: RegistryServiceStub, three_versions: list[pb.Version]
) -> None:
    alias = pb.Alias(name=f"{OWN_FOX}/aliases/prod", version=three_versions[0].name, etag="0")
    with pytest.raises(AbortedError), translated_errors():
        registry_stub.UpdateAlias(pb.UpdateAliasRequest(alias=alias, allow_missing=True))
    with pytest.raises(NotFoundError), translated_errors():
        registry_stub.UpdateAlias(pb.UpdateAliasRequest(alias=alias))
    assert list(registry.aliases("fox")) == []


def test_of_many_who_move_an_alias_from_one_state_one_wins(
    registry: RegistryClient, three_versions: list[pb.Version]
) -> None:
    etag = registry.set_alias("fox", "prod", "1").etag

    def move(racer: int) -> str | None:
        try:
            return registry.set_alias("fox", "prod", str(2 + racer % 2), etag=etag).version
        except AbortedError:
            return None

    with ThreadPoolExecutor(RACERS) as pool:
        winners = [result for result in pool.map(move, range(RACERS)) if result]
    assert winners == [registry.resolve("fox@prod").name]


def test_missing_alias_is_created_only_when_allowed(
    registry_stub: RegistryServiceStub, three_versions: list[pb.Version]
) -> None:
    alias = pb.Alias(name=f"{OWN_FOX}/aliases/prod", version=three_versions[0].name)
    with pytest.raises(NotFoundError) as caught, translated_errors():
        registry_stub.UpdateAlias(pb.UpdateAliasRequest(alias=alias))
    assert caught.value.reason == "ALIAS_NOT_FOUND"
    created = registry_stub.UpdateAlias(pb.UpdateAliasRequest(alias=alias, allow_missing=True))
    assert registry_stub.GetAlias(pb.GetAliasRequest(name=created.name)) == created


def test_deleted_alias_resolves_no_more_and_leaves_its_version(
    registry: RegistryClient, registry_stub: RegistryServiceStub, three_versions: list[pb.Version]
) -> None:
    registry.set_alias("fox", "prod", "1")
    registry_stub.DeleteAlias(pb.DeleteAliasRequest(name=fox_alias("prod")))
    assert list(registry.aliases("fox")) == []
    for gone in (
        lambda: registry.resolve("fox@prod"),
        lambda: registry_stub.DeleteAlias(pb.DeleteAliasRequest(name=fox_alias("prod"))),
    ):
        with refused(NotFoundError, "ALIAS_NOT_FOUND"):
            gone()
    assert registry.resolve("fox@1") == three_versions[0]


def test_alias_is_deleted_only_from_the_state_that_the_caller_knows(
    registry: RegistryClient, registry_stub: RegistryServiceStub, three_versions: list[pb.Version]
) -> None:
    stale = registry.set_alias("fox", "prod", "1").etag
    current = registry.set_alias("fox", "prod", "2")
    with refused(AbortedError, "ETAG_MISMATCH"):
        registry_stub.DeleteAlias(pb.DeleteAliasRequest(name=fox_alias("prod"), etag=stale))
    assert list(registry.aliases("fox")) == [current]
    registry_stub.DeleteAlias(pb.DeleteAliasRequest(name=fox_alias("prod"), etag=current.etag))


def test_alias_of_the_same_name_does_not_have_the_etag_of_a_deleted_one(
    registry: RegistryClient, registry_stub: RegistryServiceStub, three_versions: list[pb.Version]
) -> None:
    first = registry.set_alias("fox", "prod", "1").etag
    registry_stub.DeleteAlias(pb.DeleteAliasRequest(name=fox_alias("prod")))
    registry.set_alias("fox", "prod", "1")
    with refused(AbortedError, "ETAG_MISMATCH"):
        registry.set_alias("fox", "prod", "2", etag=first)


def test_every_move_is_told_with_who_made_it(
    registry: RegistryClient, registry_server: RegistryServer, tenant: str, authority: TokenAuthority
) -> None:
    publish_foxes(registry, 2)
    for subject, alias, number in (("ann", "prod", 1), ("bob", "prod", 2), ("bob", "prod", 2), ("ann", "best", 2)):
        token = authority.issue(tenant=tenant, subject=subject, scopes=[PUBLISHER], lifetime_seconds=60)
        with Connection(registry_server.address, token) as connection:
            RegistryClient(connection).set_alias("fox", alias, str(number))
    with Connection(
        registry_server.address, authority.issue(tenant=tenant, subject="cy", scopes=[PUBLISHER], lifetime_seconds=60)
    ) as cy:
        stub = RegistryServiceStub(cy.channel)
        stub.DeleteAlias(pb.DeleteAliasRequest(name=fox_alias("prod")))
        moves = stub.ListAliasMoves(pb.ListAliasMovesRequest(parent=OWN_FOX)).moves
    told = [
        (move.alias.rsplit("/", 1)[1], move.old_version[-1:], move.new_version[-1:], move.subject) for move in moves
    ]
    assert told == [
        ("prod", "2", "", "cy"),
        ("best", "", "2", "ann"),
        ("prod", "1", "2", "bob"),
        ("prod", "", "1", "ann"),
    ]
    times = [move.move_time.ToNanoseconds() for move in moves]
    assert times == sorted(times, reverse=True)


def test_aliases_come_in_pages(registry: RegistryClient, registry_stub: RegistryServiceStub) -> None:
    registry.create_adapter("fox")
    registry.publish("fox", version(), adapter_files())
    for alias in ("c", "a", "b"):
        registry.set_alias("fox", alias, "1")
    first = registry_stub.ListAliases(pb.ListAliasesRequest(parent=OWN_FOX, page_size=2))
    second = registry_stub.ListAliases(
        pb.ListAliasesRequest(parent=OWN_FOX, page_size=2, page_token=first.next_page_token)
    )
    assert [alias.name[-1] for page in (first, second) for alias in page.aliases] == ["a", "b", "c"]
    assert not second.next_page_token


@pytest.mark.parametrize("alias", ["latest", "1", "1st", "Prod", "a-", "x" * 64, ""])
def test_alias_that_could_mean_something_else_is_refused(
    registry: RegistryClient, three_versions: list[pb.Version], alias: str
) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        registry.set_alias("fox", alias, "1")
    assert caught.value.violations[0].field == "alias.name"


def test_alias_points_only_at_a_version_of_its_own_adapter(
    registry: RegistryClient, registry_stub: RegistryServiceStub, three_versions: list[pb.Version]
) -> None:
    registry.create_adapter("cat")
    alias = pb.Alias(name="tenants/-/adapters/cat/aliases/prod", version=three_versions[0].name)
    with pytest.raises(InvalidArgumentError) as caught, translated_errors():
        registry_stub.UpdateAlias(pb.UpdateAliasRequest(alias=alias, allow_missing=True))
    assert caught.value.violations[0].field == "alias.version"
    with pytest.raises(NotFoundError) as missing:
        registry.set_alias("fox", "prod", "4")
    assert missing.value.reason == "VERSION_NOT_FOUND"
    assert list(registry.aliases("fox")) == []


def test_references_mean_latest_number_or_alias(registry: RegistryClient, three_versions: list[pb.Version]) -> None:
    registry.set_alias("fox", "prod", "1")
    for reference, expected in (("fox", 2), ("fox@latest", 2), ("fox@2", 1), ("fox@prod", 0)):
        assert registry.resolve(reference) == three_versions[expected]


def test_adapter_without_versions_has_no_latest_one(registry: RegistryClient) -> None:
    registry.create_adapter("fox")
    with pytest.raises(FailedPreconditionError) as caught:
        registry.resolve("fox")
    assert caught.value.reason == "ADAPTER_HAS_NO_VERSION"


@pytest.mark.parametrize(
    ("reference", "reason"),
    [
        ("cat", "ADAPTER_NOT_FOUND"),
        ("cat@1", "ADAPTER_NOT_FOUND"),
        ("fox@4", "VERSION_NOT_FOUND"),
        ("fox@0", "VERSION_NOT_FOUND"),
        ("fox@01", "VERSION_NOT_FOUND"),
        ("fox@" + "9" * 60, "VERSION_NOT_FOUND"),
        ("fox@prod", "ALIAS_NOT_FOUND"),
    ],
)
def test_unknown_references_are_not_found(
    registry: RegistryClient, three_versions: list[pb.Version], reference: str, reason: str
) -> None:
    with pytest.raises(NotFoundError) as caught:
        registry.resolve(reference)
    assert caught.value.reason == reason
    assert len(caught.value.metadata) == 1


@pytest.mark.parametrize("reference", ["Prod", "-1", "1.0", "a/b", "9" * 100_000, "a\0"])
def test_reference_that_nothing_can_be_called_is_refused(registry: RegistryClient, reference: str) -> None:
    registry.create_adapter("fox")
    with pytest.raises(InvalidArgumentError) as caught:
        registry.resolve(f"fox@{reference}")
    assert caught.value.violations[0].field == "reference"
