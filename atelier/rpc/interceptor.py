"""What surrounds every call: identity, scope, deadline, errors, metrics and a log line.

Who calls, and whether the credential allows the method, is known before anything of the request is looked at.
Handlers may be plain functions (they run in a thread) or coroutines; they raise `atelier.errors` and know
nothing of gRPC codes. An exception from outside that tree is a bug: the caller gets INTERNAL and a correlation
id, the log gets the traceback. Health and reflection pass untouched and need no credential.
"""

from __future__ import annotations

import asyncio
import inspect
import re
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from typing import Any, NoReturn

import grpc
import structlog
from grpc_health.v1 import health
from grpc_reflection.v1alpha import reflection

from atelier import errors
from atelier.rpc import metrics
from atelier.rpc.call import CORRELATION_HEADER, Call, set_call
from atelier.rpc.identity import Authenticator
from atelier.rpc.scopes import check_scope, required_scope
from atelier.rpc.status import to_status

_CORRELATION_PATTERN = re.compile(r"[A-Za-z0-9_.-]{8,64}")
OPEN_SERVICES = frozenset({health.SERVICE_NAME, reflection.SERVICE_NAME})
"""Need no credential."""
_KINDS = {
    (False, False): (grpc.unary_unary_rpc_method_handler, "unary_unary"),
    (False, True): (grpc.unary_stream_rpc_method_handler, "unary_stream"),
    (True, False): (grpc.stream_unary_rpc_method_handler, "stream_unary"),
    (True, True): (grpc.stream_stream_rpc_method_handler, "stream_stream"),
}
_Stream = Callable[..., AsyncIterator[Any]]
_log = structlog.get_logger("atelier.rpc")


class CallInterceptor(grpc.aio.ServerInterceptor):
    """Wraps every handler of a server.

    Args:
        authenticator: knows the callers by their credentials.
        services: full names of the services that there are; no other is served, whoever may have registered it.
        max_unary_seconds: longest time a call with a single answer may take, whatever the client allows.
        max_stream_seconds: the same for calls that stream their answer.
    """

    def __init__(
        self,
        authenticator: Authenticator,
        services: Collection[str],
        *,
        max_unary_seconds: float,
        max_stream_seconds: float,
    ) -> None:
        self._authenticator = authenticator
        self._services = services
        self._max_unary_seconds = max_unary_seconds
        self._max_stream_seconds = max_stream_seconds

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler:
        """Returns the method's handler, wrapped; None, as of a method that is not there, for a service that is not."""
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        service = method.lstrip("/").partition("/")[0]
        if handler is None or service in OPEN_SERVICES:
            return handler
        if service not in self._services:
            return None
        make_handler, kind = _KINDS[handler.request_streaming, handler.response_streaming]
        wrap = self._wrap_stream if handler.response_streaming else self._wrap_unary
        wrapped = wrap(method, getattr(handler, kind))
        return make_handler(wrapped, handler.request_deserializer, handler.response_serializer)

    def _wrap_unary(self, method: str, behaviour: Callable[..., Any]) -> Callable[..., Awaitable[Any]]:
        async def wrapped(request: Any, context: grpc.aio.ServicerContext) -> Any:
            record = _CallRecord(method, context)
            try:
                async with asyncio.timeout(self._max_unary_seconds):
                    await self._admit(context, record)
                    if inspect.iscoroutinefunction(behaviour):
                        return await behaviour(request, context)
                    return await asyncio.to_thread(behaviour, request, context)
            except BaseException as error:
                await record.fail(error)
            finally:
                record.close()

        return wrapped

    def _wrap_stream(self, method: str, behaviour: _Stream) -> _Stream:
        async def wrapped(request: Any, context: grpc.aio.ServicerContext) -> AsyncIterator[Any]:
            record = _CallRecord(method, context)
            try:
                async with asyncio.timeout(self._max_stream_seconds):
                    await self._admit(context, record)
                    async for response in behaviour(request, context):
                        yield response
            except GeneratorExit:
                record.code = grpc.StatusCode.CANCELLED
                raise
            except BaseException as error:
                await record.fail(error)
            finally:
                record.close()

        return wrapped

    async def _admit(self, context: grpc.aio.ServicerContext, record: _CallRecord) -> None:
        metadata = {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}
        sent_id = metadata.get(CORRELATION_HEADER, "")
        if _CORRELATION_PATTERN.fullmatch(sent_id):
            record.correlation_id = sent_id
        structlog.contextvars.bind_contextvars(correlation_id=record.correlation_id)
        identity = await self._authenticator.authenticate(metadata.get("authorization"))
        check_scope(identity.scopes, required_scope(record.method_full_name))
        set_call(
            Call(
                tenant=identity.tenant,
                subject=identity.subject,
                scopes=identity.scopes,
                correlation_id=record.correlation_id,
            )
        )


class _CallRecord:
    """Counts one call, and says how it ended."""

    def __init__(self, method: str, context: grpc.aio.ServicerContext) -> None:
        self.correlation_id = uuid.uuid4().hex
        self.code = grpc.StatusCode.OK
        self.method_full_name = method.lstrip("/").replace("/", ".")
        self._method = method
        self._labels = tuple(method.lstrip("/").split("/", 1))
        self._context = context
        self._start = time.perf_counter()
        metrics.STARTED.labels(*self._labels).inc()
        metrics.IN_PROGRESS.labels(*self._labels).inc()

    async def fail(self, error: BaseException) -> NoReturn:
        """Ends the call with the status that `error` means."""
        if isinstance(error, asyncio.CancelledError):
            self.code = grpc.StatusCode.CANCELLED
            raise error
        known = self._known(error)
        status = to_status(known)
        self.code = next(code for code in grpc.StatusCode if code.value[0] == status.code)
        details = (("grpc-status-details-bin", status.SerializeToString()),)
        await self._context.abort(self.code, status.message, details)
        raise AssertionError("abort() raises")

    def _known(self, error: BaseException) -> errors.AtelierError:
        if isinstance(error, errors.AtelierError):
            if error.__cause__ is not None:
                # Of the cause only the type: its text may name hosts, users and what a caller sent.
                cause = type(error.__cause__).__name__
                _log.info("rpc error", method=self._method, reason=error.reason, cause=cause)
            return error
        if isinstance(error, TimeoutError):
            return errors.DeadlineExceededError("the call took longer than the service allows")
        _log.error("unexpected exception", method=self._method, exc_info=error)
        return errors.InternalError(
            f"internal error; correlation id {self.correlation_id}",
            reason="INTERNAL",
            metadata={"correlation_id": self.correlation_id},
        )

    def close(self) -> None:
        """Counts and logs the end of the call."""
        seconds = time.perf_counter() - self._start
        metrics.IN_PROGRESS.labels(*self._labels).dec()
        metrics.HANDLED.labels(*self._labels, self.code.name).inc()
        metrics.HANDLING_SECONDS.labels(*self._labels).observe(seconds)
        _log.info("rpc", method=self._method, code=self.code.name, seconds=round(seconds, 4))
