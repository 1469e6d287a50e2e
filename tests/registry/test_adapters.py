"""Adapters and tenants: create, get, update, list."""

from __future__ import annotations

import base64
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from atelier.client import RegistryClient
from atelier.errors import AbortedError, AlreadyExistsError, InvalidArgumentError, NotFoundError
from atelier.pb.registry.v1 import registry_pb2 as pb
from atelier.pb.registry.v1.registry_pb2_grpc import RegistryServiceStub
from atelier.rpc.status import translated_errors
from tests.harness.files import adapter_files, version

OWN = "tenants/-"
RACERS = 16


def test_created_adapter_is_returned_by_get_and_has_no_version(registry: RegistryClient, tenant: str) -> None:
    created = registry.create_adapter("fox", description="Our fox.")
    assert created.name == f"tenants/{tenant}/adapters/fox"
    assert (created.description, created.latest_version) == ("Our fox.", "")
    assert created.etag
    assert created.create_time.seconds > 0
    assert registry.adapter("fox") == created


def test_missing_adapter_is_not_found_by_its_full_name(registry: RegistryClient, tenant: str) -> None:
    with pytest.raises(NotFoundError) as caught:
        registry.adapter("fox")
    assert caught.value.reason == "ADAPTER_NOT_FOUND"
    assert caught.value.metadata == {"adapter": f"tenants/{tenant}/adapters/fox"}


def test_name_that_is_taken_is_refused(registry: RegistryClient) -> None:
    registry.create_adapter("fox", description="first")
    with pytest.raises(AlreadyExistsError) as caught:
        registry.create_adapter("fox", description="second")
    assert caught.value.reason == "ADAPTER_EXISTS"
    assert registry.adapter("fox").description == "first"


@pytest.mark.parametrize("adapter_id", ["", "Fox", "1fox", "fox-", "a" * 64, "fo_x", "fox/../cat", "füchse", "a\n"])
def test_ill_formed_ids_are_refused(registry: RegistryClient, adapter_id: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        registry.create_adapter(adapter_id)
    assert caught.value.violations[0].field == "adapter_id"


@pytest.mark.parametrize("description", ["x" * 1001, "a\0b"])
def test_description_must_be_text_of_allowed_length(registry: RegistryClient, description: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        registry.create_adapter("fox", description=description)
    assert caught.value.violations[0].field == "adapter.description"


def test_pages_hold_every_adapter_once_in_the_order_of_names(registry_stub: RegistryServiceStub) -> None:
    names = ["ant", "bee", "cat", "dog", "eel"]
    for adapter_id in reversed(names):
        registry_stub.CreateAdapter(pb.CreateAdapterRequest(parent=OWN, adapter_id=adapter_id))
    listed, token = [], ""
    for expected_size in (2, 2, 1):
        page = registry_stub.ListAdapters(pb.ListAdaptersRequest(parent=OWN, page_size=2, page_token=token))
        assert len(page.adapters) == expected_size
        listed += [adapter.name.rsplit("/", 1)[1] for adapter in page.adapters]
        token = page.next_page_token
    assert listed == names
    assert token == ""


def test_too_large_page_size_is_coerced(registry: RegistryClient, registry_stub: RegistryServiceStub) -> None:
    registry.create_adapter("fox")
    page = registry_stub.ListAdapters(pb.ListAdaptersRequest(parent=OWN, page_size=2**31 - 1))
    assert len(page.adapters) == 1


def test_negative_page_size_is_refused(registry_stub: RegistryServiceStub) -> None:
    with pytest.raises(InvalidArgumentError) as caught, translated_errors():
        registry_stub.ListAdapters(pb.ListAdaptersRequest(parent=OWN, page_size=-1))
    assert caught.value.violations[0].field == "page_size"


@pytest.mark.parametrize("content", [b"", b"null", b"7", b"[1,2,3]", b"[[],{}]", b"[" * 100_000, b"\xff"])
def test_page_tokens_of_nobody_are_refused(registry_stub: RegistryServiceStub, content: bytes) -> None:
    token = base64.urlsafe_b64encode(content).decode() or "?"
    with pytest.raises(InvalidArgumentError) as caught, translated_errors():
        registry_stub.ListAdapters(pb.ListAdaptersRequest(parent=OWN, page_token=token))
    assert caught.value.violations[0].field == "page_token"


def test_page_token_is_bound_to_the_list_it_came_from(
    registry: RegistryClient, registry_stub: RegistryServiceStub
) -> None:
    for adapter_id in ("ant", "bee"):
        registry.create_adapter(adapter_id)
    token = registry_stub.ListAdapters(pb.ListAdaptersRequest(parent=OWN, page_size=1)).next_page_token
    for method, request in (
        (registry_stub.ListVersions, pb.ListVersionsRequest(parent=f"{OWN}/adapters/ant", page_token=token)),
        (registry_stub.ListAliases, pb.ListAliasesRequest(parent=f"{OWN}/adapters/ant", page_token=token)),
    ):
        with pytest.raises(InvalidArgumentError) as caught, translated_errors():
            method(request)
        assert caught.value.violations[0].field == "page_token"


def update(stub: RegistryServiceStub, *paths: str, **fields: Any) -> pb.Adapter:
    """Writes these fields of the adapter `fox`, or those that `paths` name."""
    request = pb.UpdateAdapterRequest(adapter=pb.Adapter(name=f"{OWN}/adapters/fox", **fields))
    request.update_mask.paths.extend(paths)
    with translated_errors():
        return stub.UpdateAdapter(request)


def test_created_adapter_has_tags_in_order_and_its_policy(
    registry: RegistryClient, registry_stub: RegistryServiceStub
) -> None:
    policy = pb.RetentionPolicy(keep_last=3)
    wanted = pb.Adapter(tags=["style", "animal"], retention=policy)
    created = registry_stub.CreateAdapter(pb.CreateAdapterRequest(parent=OWN, adapter_id="fox", adapter=wanted))
    assert (list(created.tags), created.retention) == (["animal", "style"], policy)
    assert registry.adapter("fox") == created


def test_update_changes_what_the_mask_names(registry: RegistryClient, registry_stub: RegistryServiceStub) -> None:
    created = registry.create_adapter("fox", description="first")
    tagged = update(registry_stub, "tags", tags=["b", "a"], description="ignored")
    assert (tagged.description, list(tagged.tags)) == ("first", ["a", "b"])
    assert tagged.etag != created.etag
    changed = update(registry_stub, "tags", "description", tags=["c", "b"], description="second")
    assert (changed.description, list(changed.tags)) == ("second", ["b", "c"])
    assert registry.adapter("fox") == changed


@pytest.mark.parametrize("paths", [(), ("*",)])
def test_update_without_a_mask_writes_everything(
    registry: RegistryClient, registry_stub: RegistryServiceStub, paths: tuple[str, ...]
) -> None:
    registry.create_adapter("fox", description="first")
    update(registry_stub, "tags", "retention", tags=["a"], retention=pb.RetentionPolicy(keep_last=1))
    changed = update(registry_stub, *paths, tags=["b"])
    assert (changed.description, list(changed.tags), changed.HasField("retention")) == ("", ["b"], False)


def test_update_to_what_is_there_changes_nothing(registry: RegistryClient, registry_stub: RegistryServiceStub) -> None:
    registry.create_adapter("fox")
    before = update(registry_stub, tags=["b", "a"], description="a fox")
    assert update(registry_stub, tags=["a", "b"], description="a fox") == before


@pytest.mark.parametrize(
    "paths", [("name",), ("tags", "etag"), ("*", "tags"), ("retention.keep_last",), ("latest_version",), ("",)]
)
def test_mask_that_names_anything_else_is_refused(
    registry: RegistryClient, registry_stub: RegistryServiceStub, paths: tuple[str, ...]
) -> None:
    before = registry.create_adapter("fox")
    with pytest.raises(InvalidArgumentError, match="description, tags, retention") as caught:
        update(registry_stub, *paths, tags=["a"])
    assert caught.value.violations[0].field == "update_mask"
    assert registry.adapter("fox") == before


@pytest.mark.parametrize(
    ("tags", "field"),
    [
        (["a"] * 2, "adapter.tags[1]"),
        ([f"t{i}" for i in range(65)], "adapter.tags"),
        (["a", "Fox"], "adapter.tags[1]"),
        ([""], "adapter.tags[0]"),
        (["x" * 64], "adapter.tags[0]"),
    ],
)
def test_ill_formed_tags_are_refused(
    registry: RegistryClient, registry_stub: RegistryServiceStub, tags: list[str], field: str
) -> None:
    before = registry.create_adapter("fox")
    with pytest.raises(InvalidArgumentError) as caught:
        update(registry_stub, tags=tags)
    assert caught.value.violations[0].field == field
    assert registry.adapter("fox") == before


def test_of_many_who_update_an_adapter_from_one_state_one_wins(
    registry: RegistryClient, registry_stub: RegistryServiceStub
) -> None:
    etag = registry.create_adapter("fox").etag

    def write(racer: int) -> str | None:
        try:
            return update(registry_stub, description=f"by {racer}", etag=etag).description
        except AbortedError:
            return None

    with ThreadPoolExecutor(RACERS) as pool:
        winners = [result for result in pool.map(write, range(RACERS)) if result]
    assert winners == [registry.adapter("fox").description]


def test_publishing_changes_the_etag(registry: RegistryClient) -> None:
    created = registry.create_adapter("fox")
    registry.publish("fox", version(), adapter_files())
    assert registry.adapter("fox").etag != created.etag


def test_tenant_counts_adapters_and_each_content_once(registry: RegistryClient, tenant: str) -> None:
    assert registry.tenant() == pb.Tenant(name=f"tenants/{tenant}")
    files = adapter_files()
    for adapter in ("fox", "cat"):
        registry.create_adapter(adapter)
        registry.publish(adapter, version(), files)
    usage = registry.tenant()
    assert usage.adapter_count == 2
    assert usage.stored_bytes == sum(len(content) for content in files.values())
