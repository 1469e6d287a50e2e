"""Adapters and tenants: create, get, list."""

from __future__ import annotations

import base64
import uuid

import pytest

from atelier.client import RegistryClient
from atelier.errors import AlreadyExistsError, InvalidArgumentError, NotFoundError
from atelier.pb.registry.v1 import registry_pb2 as pb
from atelier.pb.registry.v1.registry_pb2_grpc import RegistryServiceStub
from atelier.rpc.status import translated_errors
from tests.harness.files import adapter_files, version

OWN = "tenants/-"


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


def test_repeated_request_id_creates_once(registry: RegistryClient, registry_stub: RegistryServiceStub) -> None:
    request = pb.CreateAdapterRequest(parent=OWN, adapter_id="fox", request_id=str(uuid.uuid4()))
    assert registry_stub.CreateAdapter(request) == registry_stub.CreateAdapter(request)
    assert len(list(registry.adapters())) == 1


def test_request_id_of_another_request_is_refused(registry_stub: RegistryServiceStub) -> None:
    request = pb.CreateAdapterRequest(parent=OWN, adapter_id="fox", request_id=str(uuid.uuid4()))
    registry_stub.CreateAdapter(request)
    request.adapter_id = "cat"
    with pytest.raises(InvalidArgumentError) as caught, translated_errors():
        registry_stub.CreateAdapter(request)
    assert caught.value.reason == "REQUEST_ID_REUSED"


def test_request_id_must_be_a_uuid(registry_stub: RegistryServiceStub) -> None:
    with pytest.raises(InvalidArgumentError) as caught, translated_errors():
        registry_stub.CreateAdapter(pb.CreateAdapterRequest(parent=OWN, adapter_id="fox", request_id="again"))
    assert caught.value.violations[0].field == "request_id"


def test_validate_only_checks_and_creates_nothing(registry: RegistryClient, registry_stub: RegistryServiceStub) -> None:
    request = pb.CreateAdapterRequest(parent=OWN, adapter_id="fox", validate_only=True)
    assert registry_stub.CreateAdapter(request).name.endswith("/adapters/fox")
    assert list(registry.adapters()) == []
    registry.create_adapter("fox")
    with pytest.raises(AlreadyExistsError), translated_errors():
        registry_stub.CreateAdapter(request)


def test_tenant_counts_adapters_and_each_content_once(registry: RegistryClient, tenant: str) -> None:
    assert registry.tenant() == pb.Tenant(name=f"tenants/{tenant}")
    files = adapter_files()
    for adapter in ("fox", "cat"):
        registry.create_adapter(adapter)
        registry.publish(adapter, version(), files)
    usage = registry.tenant()
    assert usage.adapter_count == 2
    assert usage.stored_bytes == sum(len(content) for content in files.values())
