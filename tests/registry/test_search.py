"""Lists of adapters, versions and moves of aliases: filtered, ordered, and page after page while things change."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from atelier.client import RegistryClient
from atelier.errors import InvalidArgumentError, NotFoundError, PermissionDeniedError
from atelier.pb.common.v1.common_pb2 import BaseModel
from atelier.pb.registry.v1 import registry_pb2 as pb
from atelier.pb.registry.v1.registry_pb2_grpc import RegistryServiceStub
from atelier.rpc.status import translated_errors
from tests.harness.files import BASE_DIGEST, adapter_files, version
from tests.harness.registry import RegistryServer

OWN = "tenants/-"
ALL = f"{OWN}/adapters/-"
SCORES: Sequence[tuple[str, float | None]] = [("fox", 0.5), ("cat", 0.9), ("fox", None), ("cat", 0.5), ("ant", 0.7)]
"""Adapter and clip_i of the versions, in the order in which they are published."""


@pytest.fixture
def published(registry: RegistryClient) -> list[str]:
    """Names of the versions of SCORES."""
    for adapter in ("fox", "cat", "ant"):
        registry.create_adapter(adapter, description=f"My {adapter}", tags=["animal", adapter])
    return [publish(registry, adapter, seed, score) for seed, (adapter, score) in enumerate(SCORES)]


def publish(registry: RegistryClient, adapter: str, seed: int, score: float | None = None) -> str:
    """Publishes a version and returns its name."""
    fields: dict[str, Any] = {"metrics": {} if score is None else {"clip_i": score}, "trigger_words": [f"w{seed}"]}
    return registry.publish(adapter, version(**fields), adapter_files(seed)).name


def pages(stub: RegistryServiceStub, after_page: Callable[[], object] = lambda: None, **fields: Any) -> Iterator[str]:
    """Names of all versions, two a page; something may happen between pages."""
    request = pb.ListVersionsRequest(**{"parent": ALL, "page_size": 2, **fields})
    while True:
        with translated_errors():
            page = stub.ListVersions(request)
        assert len(page.versions) == 2 or not page.next_page_token
        yield from (each.name for each in page.versions)
        if not page.next_page_token:
            return
        request.page_token = page.next_page_token
        after_page()


@pytest.mark.parametrize(
    ("order_by", "expected"),
    [
        ("", [4, 3, 2, 1, 0]),
        ("create_time desc", [4, 3, 2, 1, 0]),
        ("create_time", [0, 1, 2, 3, 4]),
        ("  metrics.clip_i   desc ", [1, 4, 0, 3, 2]),
        ("metrics.clip_i", [3, 0, 4, 1, 2]),
        ("metrics.unknown", [4, 1, 3, 0, 2]),
        ("metrics.unknown desc", [2, 0, 3, 1, 4]),
    ],
)
def test_versions_of_all_adapters_come_in_the_order_that_is_asked_for(
    registry_stub: RegistryServiceStub, published: list[str], order_by: str, expected: list[int]
) -> None:
    assert list(pages(registry_stub, order_by=order_by)) == [published[index] for index in expected]


@pytest.mark.parametrize(("order_by", "expected"), [("", [2, 0]), ("create_time", [0, 2]), ("metrics.clip_i", [0, 2])])
def test_versions_of_one_adapter_have_the_same_orders(
    registry: RegistryClient, published: list[str], order_by: str, expected: list[int]
) -> None:
    assert [each.name for each in registry.versions("fox", order_by=order_by)] == [published[i] for i in expected]


@pytest.mark.parametrize(
    ("filter_", "expected"),
    [
        ("metrics.clip_i >= 0.5 AND adapter = cat", [3, 1]),
        ("trigger_words:w3 OR trigger_words:w0", [3, 0]),
        ("tags:fox", [2, 0]),
        (f'base_model.model = "emoji-sd" AND base_model.digest = "{BASE_DIGEST}" AND tags:animal', [4, 3, 2, 1, 0]),
        ("family = stable-diffusion AND method = dreambooth-lora AND NOT metrics.clip_i:*", [2]),
        ("create_time < 2026-01-01T00:00:00Z", []),
        ("adapter = \"' OR 1=1 --\" OR source_job = '\") OR (1=1'", []),
    ],
)
def test_versions_are_found_by_what_they_are(
    registry: RegistryClient, published: list[str], filter_: str, expected: list[int]
) -> None:
    assert [each.name for each in registry.versions(filter=filter_)] == [published[index] for index in expected]


def test_a_version_in_a_list_is_the_version(registry: RegistryClient, published: list[str]) -> None:
    listed = list(registry.versions())
    assert listed == [registry.version(*name.split("/")[3::2]) for name in reversed(published)]
    assert listed[0].files
    assert listed[0].metrics == {"clip_i": 0.7}
    assert listed[0].trigger_words == ["w4"]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, ["ant", "cat", "fox"]),
        ({"order_by": "name desc"}, ["fox", "cat", "ant"]),
        ({"order_by": "create_time"}, ["fox", "cat", "ant"]),
        ({"order_by": "create_time desc"}, ["ant", "cat", "fox"]),
        ({"filter": "tags:cat OR description:FOX"}, ["cat", "fox"]),
        ({"filter": "name = c*"}, ["cat"]),
    ],
)
@pytest.mark.usefixtures("published")
def test_adapters_are_found_and_ordered(registry: RegistryClient, fields: dict[str, Any], expected: list[str]) -> None:
    found = list(registry.adapters(**fields))
    assert [each.name.rpartition("/")[2] for each in found] == expected
    assert [each.tags for each in found] == [sorted(["animal", name]) for name in expected]


def test_ids_are_in_one_order_whatever_stands_in_them(registry: RegistryClient) -> None:
    ids = ["a", "a-b", "a-b0", "a0", "a0-b", "ab", "aba", "b"]
    for adapter in reversed(ids):
        registry.create_adapter(adapter)
    assert [each.name.rpartition("/")[2] for each in registry.adapters()] == ids


@pytest.mark.parametrize("order_by", ["", "create_time", "metrics.clip_i", "metrics.clip_i desc"])
def test_pages_hold_what_was_there_all_the_time_once_whatever_comes_and_goes(
    registry: RegistryClient, registry_stub: RegistryServiceStub, published: list[str], order_by: str
) -> None:
    doomed = [publish(registry, "fox", seed, seed / 10) for seed in (5, 6, 7)]
    coming = iter(range(8, 100))

    def change() -> None:
        publish(registry, "ant", seed := next(coming), (seed * 37 % 10) / 10)
        if doomed:
            registry.delete_version("fox", doomed.pop().rpartition("/")[2])

    seen = list(pages(registry_stub, change, order_by=order_by)) if order_by != "create_time" else []
    if order_by == "create_time":  # what comes is always ahead: as many pages as there were at first
        walk = pages(registry_stub, change, order_by=order_by)
        seen = [next(walk) for _ in range(len(published) + 1)]
    assert len(seen) == len(set(seen))
    assert set(published) <= set(seen)


def test_deleted_things_are_shown_when_they_are_asked_for(registry: RegistryClient, published: list[str]) -> None:
    registry.delete_version("fox", "1")
    registry.delete_adapter("cat", force=True)
    assert [each.name for each in registry.versions()] == [published[4], published[2]]
    assert [each.name for each in registry.versions("cat")] == []
    assert [each.name for each in registry.versions(show_deleted=True)] == published[::-1]
    assert [each.name for each in registry.versions("cat", show_deleted=True)] == [published[3], published[1]]
    for show_deleted, names in ((False, ["ant", "fox"]), (True, ["ant", "cat", "fox"])):
        assert [each.name.rpartition("/")[2] for each in registry.adapters(show_deleted=show_deleted)] == names


def test_other_tenants_things_never_appear(
    registry: RegistryClient, registry_server: RegistryServer, published: list[str]
) -> None:
    with registry_server.connect("somebody-else") as connection:
        other = RegistryClient(connection)
        assert not list(other.adapters(filter='NOT name = "" OR tags:animal', show_deleted=True))
        for filter_ in (
            "",
            "tags:animal",
            "trigger_words:w1",
            "metrics.clip_i > 0",
            "adapter = fox",
            "NOT adapter = x",
        ):
            for order_by in ("", "metrics.clip_i"):
                assert not list(other.versions(filter=filter_, order_by=order_by, show_deleted=True))
        with pytest.raises(NotFoundError):
            list(other.versions("fox"))
        stub = RegistryServiceStub(connection.channel)
        with pytest.raises(PermissionDeniedError), translated_errors():
            stub.ListVersions(pb.ListVersionsRequest(parent=published[0].partition("/versions")[0]))


def test_a_token_belongs_to_its_request(registry_stub: RegistryServiceStub, published: list[str]) -> None:
    asked: dict[str, Any] = {"parent": ALL, "page_size": 1, "filter": "tags:animal", "order_by": "metrics.clip_i"}
    token = registry_stub.ListVersions(pb.ListVersionsRequest(**asked)).next_page_token
    again = registry_stub.ListVersions(pb.ListVersionsRequest(**{**asked, "page_size": 4, "page_token": token}))
    assert len(again.versions) == 4
    for changed in (
        {"parent": f"{OWN}/adapters/fox"},
        {"filter": "tags:animal "},
        {"order_by": "metrics.clip_i desc"},
        {"order_by": ""},
        {"show_deleted": True},
    ):
        with pytest.raises(InvalidArgumentError) as caught, translated_errors():
            registry_stub.ListVersions(pb.ListVersionsRequest(**{**asked, **changed, "page_token": token}))
        assert caught.value.violations[0].field == "page_token"
    with pytest.raises(InvalidArgumentError) as caught, translated_errors():
        registry_stub.ListAdapters(pb.ListAdaptersRequest(parent=OWN, filter="tags:animal", page_token=token))
    assert caught.value.violations[0].field == "page_token"


@pytest.mark.parametrize(
    ("fields", "field", "words"),
    [
        ({"filter": "base_modle.model = x"}, "filter", "did you mean 'base_model.model'?"),
        ({"filter": "(" * 1000}, "filter", "expected is"),
        ({"order_by": "metrics.clip_i, create_time"}, "order_by", "allowed is create_time or metrics.NAME"),
        ({"order_by": "creation_time"}, "order_by", "did you mean 'create_time'?"),
        ({"order_by": "create_time asc"}, "order_by", "with or without ` desc`"),
        ({"order_by": "x" * 100_000}, "order_by", "allowed is"),
    ],
)
def test_a_wrong_question_is_told_what_is_allowed(
    registry_stub: RegistryServiceStub, fields: dict[str, Any], field: str, words: str
) -> None:
    with pytest.raises(InvalidArgumentError) as caught, translated_errors():
        registry_stub.ListVersions(pb.ListVersionsRequest(parent=ALL, **fields))
    (violation,) = caught.value.violations
    assert violation.field == field
    assert words in violation.description


def test_moves_of_aliases_are_listed_newest_first(
    registry: RegistryClient, registry_stub: RegistryServiceStub, published: list[str], tenant: str
) -> None:
    registry.set_alias("fox", "prod", "1")
    registry.set_alias("fox", "test", "2")
    registry.set_alias("fox", "prod", "2")
    registry.delete_alias("fox", "prod")
    registry.set_alias("cat", "prod", "1")
    prod = f"tenants/{tenant}/adapters/fox/aliases/prod"
    moves = list(registry.alias_moves("fox", filter='alias = "prod" AND subject:*'))
    assert [(each.alias, each.old_version, each.new_version) for each in moves] == [
        (prod, published[2], ""),
        (prod, published[0], published[2]),
        (prod, "", published[0]),
    ]
    assert {each.subject for each in moves} == {"test"}
    assert not list(registry.alias_moves("fox", filter="move_time > 2100-01-01T00:00:00Z"))
    request = pb.ListAliasMovesRequest(parent=f"{OWN}/adapters/fox", page_size=3)
    first = registry_stub.ListAliasMoves(request)
    request.page_token = first.next_page_token
    registry.set_alias("fox", "prod", "1")
    second = registry_stub.ListAliasMoves(request)
    assert [each.alias.rpartition("/")[2] for each in (*first.moves, *second.moves)] == ["prod", "prod", "test", "prod"]
    assert not second.next_page_token


def test_base_models_name_is_no_pattern_of_like(registry: RegistryClient) -> None:
    registry.create_adapter("fox")
    base = BaseModel(model="emoji%sd", digest=BASE_DIGEST)
    registry.publish("fox", version(base_model=base), adapter_files())
    for filter_, count in (("emoji%sd", 1), ("emoji_sd", 0), ("%", 0), ("emoji%*", 1), ("emoji-*", 0)):
        assert len(list(registry.versions(filter=f'base_model.model = "{filter_}"'))) == count, filter_
