"""Where a service is, how it is spoken to, and what credential it gets."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import grpc

from atelier.rpc.channel import ClientTls, open_channel
from atelier.rpc.status import translated_errors

OWN_TENANT = "tenants/-"
"""The caller's tenant, whatever its name: a credential has just one."""
LONG_CALL_SECONDS = 660.0
"""For calls that work through many bytes: above a service's own limit (`--max-unary-seconds`), which comes first."""

RETRY_SECONDS = 2.0
"""Between calls that fail, when a service does not say how long."""


def fresh_request_id() -> str:
    """What makes the retries of one call safe."""
    return str(uuid.uuid4())


class Connection:
    """A channel to one service; a context manager that closes it.

    Args:
        address: `host:port`.
        token: the bearer token, or a function that returns a fresh one.
        tls: the server's authorities and the client's certificate; None speaks plaintext.
        allow_plaintext: without TLS, send the token to another machine too: a mesh or a tunnel protects it.

    Raises:
        FailedPreconditionError: the token would leave this machine in plaintext.
    """

    def __init__(
        self,
        address: str,
        token: str | Callable[[], str],
        *,
        tls: ClientTls | None = None,
        allow_plaintext: bool = False,
    ) -> None:
        self.address = address
        get_token = token if callable(token) else lambda: token
        self.channel: grpc.Channel = open_channel(address, get_token, tls=tls, allow_plaintext=allow_plaintext)

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.channel.close()


@dataclass(frozen=True, kw_only=True, slots=True)
class Endpoint:
    """Where a service is and how it is spoken to: all of a connection but its credential. See Connection."""

    address: str
    tls: ClientTls | None = None
    allow_plaintext: bool = False

    def connect(self, token: str | Callable[[], str]) -> Connection:
        """A connection with this credential; close it after use."""
        return Connection(self.address, token, tls=self.tls, allow_plaintext=self.allow_plaintext)


def paged(method: Callable[[Any], Any], request: Any, items: str) -> Iterator[Any]:
    """All items of a List method, page after page."""
    while True:
        with translated_errors():
            response = method(request)
        yield from getattr(response, items)
        if not response.next_page_token:
            return
        request.page_token = response.next_page_token
