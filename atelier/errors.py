"""Every error that Atelier raises on purpose.

    AtelierError
    ├── InvalidArgumentError      a field of the request is wrong
    ├── UnauthenticatedError      no credential, or not a valid one
    ├── PermissionDeniedError     another tenant's resource
    ├── NotFoundError             the resource is not there
    ├── AlreadyExistsError        the name is taken
    ├── FailedPreconditionError   right request, wrong state
    ├── AbortedError              lost a race; read again and retry
    ├── ResourceExhaustedError    too much at once; retry later
    ├── UnavailableError          a dependency is away; retry later
    ├── DeadlineExceededError     took longer than it may
    ├── CancelledError            stopped because it was asked to
    ├── DataLossError             bytes do not agree with their digest
    └── InternalError             a bug; only a correlation id reaches the caller

`atelier.rpc.status` maps the tree to gRPC codes, in both directions. Anything else that is raised is a bug
and reaches a caller as an InternalError without its text.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One wrong field: its path in the request, what is wrong, and what is allowed."""

    field: str
    description: str


class AtelierError(Exception):
    """Base of the tree.

    Args:
        message: for the caller's eyes: what is wrong and what would be right. No secrets.
        reason: stable UPPER_SNAKE word for programs (AIP-193), at most 63 characters.
        metadata: the message's dynamic values again, for programs.
        retry_after_seconds: when a retry makes sense; None when it does not.
    """

    default_reason = "INTERNAL"

    def __init__(
        self,
        message: str,
        *,
        reason: str | None = None,
        metadata: Mapping[str, str] | None = None,
        retry_after_seconds: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason or self.default_reason
        self.metadata = dict(metadata or {})
        self.retry_after_seconds = retry_after_seconds


class InvalidArgumentError(AtelierError):
    """A field of the request is wrong, whatever the state of the service."""

    default_reason = "INVALID_FIELD"

    def __init__(
        self,
        field: str,
        description: str,
        *,
        reason: str | None = None,
        metadata: Mapping[str, str] | None = None,
        more: Sequence[FieldViolation] = (),
    ) -> None:
        super().__init__(f"{field}: {description}", reason=reason, metadata={"field": field, **(metadata or {})})
        self.violations = (FieldViolation(field, description), *more)


@contextmanager
def within(field: str) -> Iterator[None]:
    """Puts `field` before the field names of an InvalidArgumentError from inside: they were told of a part of it."""
    try:
        yield
    except InvalidArgumentError as error:
        first, *more = (FieldViolation(f"{field}.{v.field}", v.description) for v in error.violations)
        raise InvalidArgumentError(first.field, first.description, reason=error.reason, more=more) from error


class UnauthenticatedError(AtelierError):
    """No credential, or not a valid one."""

    default_reason = "UNAUTHENTICATED"


class PermissionDeniedError(AtelierError):
    """The credential does not reach there."""

    default_reason = "PERMISSION_DENIED"


class NotFoundError(AtelierError):
    """The resource is not there."""

    default_reason = "NOT_FOUND"


class AlreadyExistsError(AtelierError):
    """The name is taken."""

    default_reason = "ALREADY_EXISTS"


class FailedPreconditionError(AtelierError):
    """The request is right, but the state it needs is not there."""

    default_reason = "FAILED_PRECONDITION"


class AbortedError(AtelierError):
    """Somebody else was faster; read again, then retry."""

    default_reason = "ETAG_MISMATCH"


class ResourceExhaustedError(AtelierError):
    """Too much at once."""

    default_reason = "RESOURCE_EXHAUSTED"


class UnavailableError(AtelierError):
    """A dependency is away."""

    default_reason = "UNAVAILABLE"

    def __init__(
        self,
        message: str,
        *,
        reason: str | None = None,
        metadata: Mapping[str, str] | None = None,
        retry_after_seconds: float | None = 2.0,
    ) -> None:
        super().__init__(message, reason=reason, metadata=metadata, retry_after_seconds=retry_after_seconds)


class DeadlineExceededError(AtelierError):
    """It took longer than it may."""

    default_reason = "DEADLINE_EXCEEDED"


class CancelledError(AtelierError):
    """It stopped because it was asked to."""

    default_reason = "CANCELLED"


class DataLossError(AtelierError):
    """Bytes do not agree with their digest."""

    default_reason = "DIGEST_MISMATCH"


class InternalError(AtelierError):
    """A bug."""
