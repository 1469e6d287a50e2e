"""Where a service is and what credential it gets."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any

import grpc

from atelier.rpc.channel import open_channel
from atelier.rpc.status import translated_errors

OWN_TENANT = "tenants/-"
"""The caller's tenant, whatever its name: a credential has just one."""


class Connection:
    """A channel to one service; a context manager that closes it.

    Args:
        address: `host:port`.
        token: the bearer token, or a function that returns a fresh one.
    """

    def __init__(self, address: str, token: str | Callable[[], str]) -> None:
        self.address = address
        self.channel: grpc.Channel = open_channel(address, token if callable(token) else lambda: token)

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.channel.close()


def paged(method: Callable[[Any], Any], request: Any, items: str) -> Iterator[Any]:
    """All items of a List method, page after page."""
    while True:
        with translated_errors():
            response = method(request)
        yield from getattr(response, items)
        if not response.next_page_token:
            return
        request.page_token = response.next_page_token
