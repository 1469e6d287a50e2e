"""Errors on the wire: the exception tree of `atelier.errors` to `google.rpc.Status`, and back.

The one place that knows gRPC codes. Every status carries an ErrorInfo (AIP-193); wrong fields come as
BadRequest, retry advice as RetryInfo.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from atelier import errors

DOMAIN = "atelier"
# A status travels in headers, its message twice, percent-encoded and in base64: gRPC takes 8 KiB of headers in all, and
# makes RESOURCE_EXHAUSTED of what has more.
MAX_MESSAGE_BYTES = 1000
MAX_VALUE_BYTES = 500

_CODES: dict[type[errors.AtelierError], int] = {
    errors.InvalidArgumentError: code_pb2.INVALID_ARGUMENT,
    errors.UnauthenticatedError: code_pb2.UNAUTHENTICATED,
    errors.PermissionDeniedError: code_pb2.PERMISSION_DENIED,
    errors.NotFoundError: code_pb2.NOT_FOUND,
    errors.AlreadyExistsError: code_pb2.ALREADY_EXISTS,
    errors.FailedPreconditionError: code_pb2.FAILED_PRECONDITION,
    errors.AbortedError: code_pb2.ABORTED,
    errors.ResourceExhaustedError: code_pb2.RESOURCE_EXHAUSTED,
    errors.UnavailableError: code_pb2.UNAVAILABLE,
    errors.DeadlineExceededError: code_pb2.DEADLINE_EXCEEDED,
    errors.CancelledError: code_pb2.CANCELLED,
    errors.DataLossError: code_pb2.DATA_LOSS,
    errors.InternalError: code_pb2.INTERNAL,
}
_ERRORS = {code: error for error, code in _CODES.items()}


def to_status(error: errors.AtelierError) -> status_pb2.Status:
    """The status that tells a caller everything that `error` holds, the beginning of what is long."""
    metadata = {key: _cut(value, MAX_VALUE_BYTES) for key, value in error.metadata.items()}
    info = error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=metadata)
    message = _cut(error.message, MAX_MESSAGE_BYTES)
    status = status_pb2.Status(code=_CODES[type(error)], message=message, details=[_pack(info)])
    if isinstance(error, errors.InvalidArgumentError):
        bad_request = error_details_pb2.BadRequest()
        for violation in error.violations:
            bad_request.field_violations.add(
                field=_cut(violation.field, MAX_VALUE_BYTES), description=_cut(violation.description, MAX_MESSAGE_BYTES)
            )
        status.details.append(_pack(bad_request))
    if error.retry_after_seconds is not None:
        delay = duration_pb2.Duration()
        delay.FromMilliseconds(int(error.retry_after_seconds * 1000))
        status.details.append(_pack(error_details_pb2.RetryInfo(retry_delay=delay)))
    return status


def from_status(status: status_pb2.Status) -> errors.AtelierError:
    """The error that a status tells of."""
    info, bad_request, retry = (
        _unpack(status, kind)
        for kind in (error_details_pb2.ErrorInfo, error_details_pb2.BadRequest, error_details_pb2.RetryInfo)
    )
    reason = info.reason if info else None
    metadata = dict(info.metadata) if info else {}
    if bad_request and bad_request.field_violations:
        first, *more = (errors.FieldViolation(v.field, v.description) for v in bad_request.field_violations)
        return errors.InvalidArgumentError(first.field, first.description, reason=reason, metadata=metadata, more=more)
    if status.code == code_pb2.INVALID_ARGUMENT:
        return errors.InvalidArgumentError("request", status.message, reason=reason, metadata=metadata)
    kind = _ERRORS.get(status.code, errors.InternalError)
    seconds = retry.retry_delay.ToMilliseconds() / 1000 if retry else None
    return kind(status.message, reason=reason, metadata=metadata, retry_after_seconds=seconds)


def from_rpc_error(error: grpc.RpcError) -> errors.AtelierError:
    """The error behind a failed call, whether a service or the connection failed it."""
    status = rpc_status.from_call(error)
    if status is None:
        status = status_pb2.Status(code=error.code().value[0], message=error.details() or error.code().name)
    return from_status(status)


@contextmanager
def translated_errors() -> Iterator[None]:
    """Lets code around client calls see Atelier's errors in place of grpc.RpcError."""
    try:
        yield
    except grpc.RpcError as error:
        raise from_rpc_error(error) from error


def _cut(text: str, max_bytes: int) -> str:
    """The text, or its beginning and an ellipsis."""
    encoded = text.encode()
    return text if len(encoded) <= max_bytes else encoded[: max_bytes - 3].decode(errors="ignore") + "…"


def _pack(message: Message) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed


def _unpack(status: status_pb2.Status, kind: Any) -> Any:
    for detail in status.details:
        if detail.Is(kind.DESCRIPTOR):
            message = kind()
            detail.Unpack(message)
            return message
    return None
