"""Client channels: TLS, credential and correlation id on every call, retries of UNAVAILABLE, messages up to 64 MiB.

A credential leaves this machine under TLS, or where the caller says that something else protects it. Certificates
are read when the channel is opened. Retries follow gRPC's service config: calls that change something are repeated
under the `request_id` that clients send, or do no harm twice. Calls whose answer holds a fresh secret are neither, and
are never repeated: whether the lost answer's token is there, their caller has to look. Nor are calls that stream their
answer: when a server dies, gRPC's retries leave some of these waiting for ever, past their deadlines (grpcio 1.85.1).
"""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import grpc

from atelier.errors import FailedPreconditionError
from atelier.pb.inference.v1 import inference_pb2
from atelier.pb.registry.v1 import base_models_pb2, maintenance_pb2, registry_pb2, tokens_pb2
from atelier.pb.trainer.v1 import trainer_pb2
from atelier.rpc.call import CORRELATION_HEADER, current_correlation_id

MAX_RESPONSE_BYTES = 64 * 1024 * 1024
DEFAULT_TIMEOUT_SECONDS = 60.0

_CONTRACTS = (base_models_pb2, inference_pb2, maintenance_pb2, registry_pb2, tokens_pb2, trainer_pb2)
_SECRET_ANSWERS = ("CreateToken", "RotateToken")


def _never_repeated() -> list[dict[str, str]]:
    services = [service for contract in _CONTRACTS for service in contract.DESCRIPTOR.services_by_name.values()]
    return [
        {"service": service.full_name, "method": method.name}
        for service in services
        for method in service.methods
        if method.server_streaming or method.name in _SECRET_ANSWERS
    ]


_SERVICE_CONFIG = {
    "methodConfig": [
        {"name": _never_repeated()},
        {
            "name": [{}],
            "retryPolicy": {
                "maxAttempts": 4,
                "initialBackoff": "0.2s",
                "maxBackoff": "2s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        },
    ]
}
# host:port, in brackets an IPv6 address; what a URL may have besides, such as `user@`, is no part of a host.
_ADDRESS = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9.-]+)):[0-9]{1,5}")
_OPTIONS = [
    ("grpc.max_receive_message_length", MAX_RESPONSE_BYTES),
    ("grpc.service_config", json.dumps(_SERVICE_CONFIG)),
    ("grpc.keepalive_time_ms", 120_000),
    ("grpc.max_reconnect_backoff_ms", 5_000),
]


@dataclass(frozen=True, kw_only=True, slots=True)
class ClientTls:
    """What a client trusts, and with what it proves itself where the server asks for a certificate. PEM files."""

    ca_file: Path
    """Authorities of the server's certificate: a private one's, or the system's bundle."""
    certificate_file: Path | None = None
    key_file: Path | None = None

    def __post_init__(self) -> None:
        if (self.certificate_file is None) != (self.key_file is None):
            raise ValueError("certificate_file and key_file: one is given without the other")

    def credentials(self) -> grpc.ChannelCredentials:
        """For a channel."""
        key = self.key_file.read_bytes() if self.key_file else None
        certificate = self.certificate_file.read_bytes() if self.certificate_file else None
        return grpc.ssl_channel_credentials(self.ca_file.read_bytes(), key, certificate)


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


def open_channel(
    address: str, token: Callable[[], str], *, tls: ClientTls | None = None, allow_plaintext: bool = False
) -> grpc.Channel:
    """A channel to `host:port` whose calls carry the token that `token()` returns at their time.

    Raises:
        FailedPreconditionError: the token would leave this machine in plaintext.
    """
    if tls is not None:
        channel = grpc.secure_channel(address, tls.credentials(), options=_OPTIONS)
    elif allow_plaintext or is_loopback(address):
        channel = grpc.insecure_channel(address, options=_OPTIONS)
    else:
        raise FailedPreconditionError(
            f"no token is sent to {address} without TLS: name the server's authorities (ATELIER_CA_FILE, "
            "--registry-ca-file), or allow plaintext where the network itself is protected "
            "(ATELIER_ALLOW_PLAINTEXT=1, --registry-plaintext)",
            reason="PLAINTEXT_REFUSED",
        )
    return grpc.intercept_channel(channel, _Credential(token))


def is_loopback(address: str) -> bool:
    """Whether what is sent to `host:port` stays on this machine."""
    match = _ADDRESS.fullmatch(address)
    return match is not None and is_loopback_host(match[1] or match[2])


def is_loopback_host(host: str) -> bool:
    """Whether a host's name or address, without brackets, is this machine's."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
