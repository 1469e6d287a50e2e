"""Calling any method of a service, whatever its kind: for tests that walk all of them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from google.protobuf.descriptor import ServiceDescriptor

from atelier.rpc.status import translated_errors


def call(
    stub: Any, service: ServiceDescriptor, method: str, request: Any, metadata: Iterable[tuple[str, str]] = ()
) -> None:
    """Calls a method to its end; raises `atelier.errors`."""
    descriptor = service.methods_by_name[method]
    with translated_errors():
        answer = getattr(stub, method)(
            iter([request]) if descriptor.client_streaming else request, metadata=tuple(metadata)
        )
        if descriptor.server_streaming:
            list(answer)
