"""Client channels: credential and correlation id on every call, retries of UNAVAILABLE, messages up to 64 MiB.

Retries follow gRPC's service config. Creating calls are safe to retry because clients send a `request_id`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, NamedTuple

import grpc

from atelier.rpc.call import CORRELATION_HEADER, current_correlation_id

MAX_RESPONSE_BYTES = 64 * 1024 * 1024
DEFAULT_TIMEOUT_SECONDS = 60.0

_SERVICE_CONFIG = {
    "methodConfig": [
        {
            "name": [{}],
            "retryPolicy": {
                "maxAttempts": 4,
                "initialBackoff": "0.2s",
                "maxBackoff": "2s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ]
}
_OPTIONS = [
    ("grpc.max_receive_message_length", MAX_RESPONSE_BYTES),
    ("grpc.service_config", json.dumps(_SERVICE_CONFIG)),
    ("grpc.keepalive_time_ms", 120_000),
    ("grpc.max_reconnect_backoff_ms", 5_000),
]


class _CallDetails(NamedTuple):
    method: str
    timeout: float | None
    metadata: Any
    credentials: Any
    wait_for_ready: bool | None
    compression: Any


class _Credential(
    grpc.UnaryUnaryClientInterceptor,
    grpc.UnaryStreamClientInterceptor,
    grpc.StreamUnaryClientInterceptor,
):
    """Adds the bearer token, and a deadline where the caller gave none and the answer is a single message."""

    def __init__(self, token: Callable[[], str]) -> None:
        self._token = token

    def _amend(self, details: grpc.ClientCallDetails, timeout: float | None) -> _CallDetails:
        metadata = [*(details.metadata or ()), ("authorization", f"Bearer {self._token()}")]
        correlation_id = current_correlation_id()
        if correlation_id is not None and all(key != CORRELATION_HEADER for key, _ in metadata):
            metadata.append((CORRELATION_HEADER, correlation_id))
        return _CallDetails(details.method, details.timeout or timeout, metadata, details.credentials, None, None)

    def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        return continuation(self._amend(client_call_details, DEFAULT_TIMEOUT_SECONDS), request)

    def intercept_unary_stream(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        return continuation(self._amend(client_call_details, None), request)

    def intercept_stream_unary(self, continuation: Any, client_call_details: Any, request_iterator: Any) -> Any:
        return continuation(self._amend(client_call_details, None), request_iterator)


def open_channel(address: str, token: Callable[[], str]) -> grpc.Channel:
    """A channel to `host:port` whose calls carry the token that `token()` returns at their time."""
    return grpc.intercept_channel(grpc.insecure_channel(address, options=_OPTIONS), _Credential(token))
