"""The page tokens of every List of the registry go on with that List and its arguments, and with nothing else."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from google.protobuf.message_factory import GetMessageClass

from atelier.client import BaseModelClient, Connection, RegistryClient, TokenClient
from atelier.errors import InvalidArgumentError
from atelier.rpc.scopes import ADMIN, OPERATOR, READER
from tests.harness.calls import REGISTRY, call, methods
from tests.harness.files import adapter_files, version
from tests.harness.registry import RegistryServer
from tests.registry.test_base_models import other_base

OWN = "tenants/-"
PARENTS = {
    "ListAdapters": [OWN],
    "ListVersions": [f"{OWN}/adapters/fox", f"{OWN}/adapters/-", f"{OWN}/adapters/owl"],
    "ListAliases": [f"{OWN}/adapters/fox", f"{OWN}/adapters/owl"],
    "ListAliasMoves": [f"{OWN}/adapters/fox", f"{OWN}/adapters/owl"],
    "ListBaseModels": [""],
    "ListTokens": [OWN],
}
"""Of each List, those that the tenant has more than one item of; `parent` is empty where there is none."""
LISTS = {each.name: each for each in methods(REGISTRY) if each.name.startswith("List")}
QUERIES = [(name, parent) for name, parents in PARENTS.items() for parent in parents]


@pytest.fixture(scope="module")
def tenants(registry_server: RegistryServer) -> Iterator[dict[str, Connection]]:
    """Two tenants who have the same."""
    with registry_server.connect("pages-1", ADMIN, OPERATOR) as one, registry_server.connect("pages-2") as other:
        for connection in (one, other):
            registry = RegistryClient(connection)
            for adapter in ("fox", "owl"):
                registry.create_adapter(adapter)
                for number in ("1", "2"):
                    registry.publish(adapter, version(), adapter_files(int(number)))
                    registry.set_alias(adapter, f"a{number}", number)
            for token in ("ci", "cd"):
                TokenClient(connection).create(token, [READER])
        BaseModelClient(one).register(other_base())
        yield {"one": one, "other": other}


def page(connection: Connection, query: tuple[str, str], page_token: str = "") -> str:
    """Asks for a page of one item; the token of the page after it."""
    name, parent = query
    parents = {"parent": parent} if parent else {}
    request = GetMessageClass(LISTS[name].input_type)(page_size=1, page_token=page_token, **parents)
    (answer,) = call(connection, LISTS[name], request)
    token: str = answer.next_page_token
    return token


def test_every_list_is_walked() -> None:
    assert LISTS.keys() == PARENTS.keys()


@pytest.mark.parametrize("query", QUERIES, ids=" ".join)
def test_page_token_is_bound_to_its_query(tenants: dict[str, Connection], query: tuple[str, str]) -> None:
    token = page(tenants["one"], query)
    assert token
    page(tenants["one"], query, token)
    others = [(tenants["one"], other) for other in QUERIES if other != query]
    if query[1]:
        others.append((tenants["other"], query))
    for connection, other in others:
        with pytest.raises(InvalidArgumentError) as caught:
            page(connection, other, token)
        assert [violation.field for violation in caught.value.violations] == ["page_token"]
