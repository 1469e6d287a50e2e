"""Servers with the test's own handlers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from atelier.rpc.identity import TokenAuthority
from tests.harness.rpc import ScaffoldServer


@pytest.fixture
def serve(authority: TokenAuthority) -> Iterator[Callable[..., ScaffoldServer]]:
    """`serve(handlers, **options)` starts a server that ends with the test."""
    servers: list[ScaffoldServer] = []

    def start(handlers: dict[str, Callable[..., Any]], **options: Any) -> ScaffoldServer:
        servers.append(ScaffoldServer(authority, handlers, **{"grace_seconds": 0.0, **options}))
        return servers[-1]

    yield start
    for server in servers:
        server.close()
