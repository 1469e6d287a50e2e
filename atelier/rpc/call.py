"""The call that is being served, for whatever code serves it.

The interceptor sets it; handlers and the code below them read it. It follows `asyncio.to_thread`, and not a
thread that is started by hand.
"""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass

from atelier.pb.common.v1.common_pb2 import Scope


@dataclass(frozen=True, kw_only=True, slots=True)
class Call:
    """One RPC: who asks, what the credential allows, and the id under which its log lines are found."""

    tenant: str
    subject: str
    scopes: frozenset[Scope] = frozenset()
    correlation_id: str


CORRELATION_HEADER = "x-correlation-id"
_current: ContextVar[Call] = ContextVar("atelier_call")
set_call = _current.set


def current_call() -> Call:
    """The call being served. LookupError outside of one: a bug."""
    return _current.get()


def current_correlation_id() -> str | None:
    """The id of the call being served, for calls that are made on its behalf; None outside of one."""
    call = _current.get(None)
    return call.correlation_id if call else None


def current_tenant() -> str:
    """The caller's tenant, as its credential says."""
    return _current.get().tenant
