"""The scaffold on the wire: errors, deadlines, health, reflection, drain."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import pytest
import structlog
from google.rpc import error_details_pb2
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from grpc_status import rpc_status
from structlog.testing import capture_logs

from atelier import errors
from atelier.local.process import wait_until
from atelier.pb.registry.v1 import registry_pb2 as pb
from atelier.pb.registry.v1.registry_pb2_grpc import RegistryServiceStub
from atelier.rpc.call import CORRELATION_HEADER, current_call
from atelier.rpc.status import translated_errors
from tests.harness.rpc import SERVICE, ScaffoldServer
from tests.harness.service import health

Serve = Callable[..., ScaffoldServer]
SECRET = "secret path /home/alice"


def fail(request: object, context: object) -> pb.Tenant:
    """A handler with a bug, run in a thread."""
    raise ValueError(SECRET)


async def fail_in_the_loop(request: object, context: object) -> pb.Tenant:
    """A handler with a bug, run in the event loop."""
    raise ValueError(SECRET)


async def fail_in_a_stream(request: object, context: object) -> AsyncIterator[pb.DownloadFileResponse]:
    """A handler with a bug after its first answer."""
    yield pb.DownloadFileResponse(data=b"x")
    raise ValueError(SECRET)


async def wait_for_ever(request: object, context: object) -> pb.Tenant:
    """A handler that never answers."""
    await asyncio.Event().wait()
    raise AssertionError


async def wait_for_ever_in_a_stream(request: object, context: object) -> AsyncIterator[pb.DownloadFileResponse]:
    """A handler that never answers a second time."""
    yield pb.DownloadFileResponse(data=b"x")
    await asyncio.Event().wait()


def wait_for_health(server: ScaffoldServer, state: str) -> None:
    """Returns when the server's health is this."""
    wait_until(lambda: health(server.address) == state, timeout_seconds=30, what=f"health is {state}")


def call(server: ScaffoldServer, method: str, **options: Any) -> Any:
    """Calls a method with an empty request, to the end."""
    with server.connect() as connection:
        stub = RegistryServiceStub(connection.channel)
        if method == "DownloadFile":
            return list(stub.DownloadFile(pb.DownloadFileRequest(), **options))
        if method == "PublishVersion":
            return stub.PublishVersion(iter([pb.PublishVersionRequest()]), **options)
        return getattr(stub, method)(getattr(pb, f"{method}Request")(), **options)


@pytest.mark.parametrize(
    ("method", "handler"),
    [
        ("GetTenant", fail),
        ("GetTenant", fail_in_the_loop),
        ("PublishVersion", fail_in_the_loop),
        ("DownloadFile", fail_in_a_stream),
    ],
)
def test_unknown_exception_is_internal_with_a_correlation_id_and_no_text(
    serve: Serve, method: str, handler: Callable[..., Any]
) -> None:
    server = serve({method: handler})
    with pytest.raises(grpc.RpcError) as caught:
        call(server, method, metadata=[(CORRELATION_HEADER, "my-correlation-id")])
    assert caught.value.code() == grpc.StatusCode.INTERNAL
    status = rpc_status.from_call(caught.value)
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert (info.domain, info.metadata["correlation_id"]) == ("atelier", "my-correlation-id")
    everything = f"{caught.value.details()}{status}{caught.value.trailing_metadata()}"
    assert "my-correlation-id" in caught.value.details()
    assert "alice" not in everything
    assert "ValueError" not in everything


def test_bug_is_logged_with_its_exception_under_the_correlation_id(serve: Serve) -> None:
    server = serve({"GetTenant": fail})
    with capture_logs(processors=[structlog.contextvars.merge_contextvars]) as events, pytest.raises(grpc.RpcError):
        call(server, "GetTenant", metadata=[(CORRELATION_HEADER, "my-correlation-id")])
    (event,) = [event for event in events if event["event"] == "unexpected exception"]
    assert event["correlation_id"] == "my-correlation-id"
    assert str(event["exc_info"]) == SECRET


@pytest.mark.parametrize("sent", [None, "short", "x" * 65, "white space", 'quote"{}'])
def test_correlation_id_that_could_spoil_a_log_is_replaced(serve: Serve, sent: str | None) -> None:
    server = serve({"GetTenant": lambda request, context: pb.Tenant(name=current_call().correlation_id)})
    used = call(server, "GetTenant", metadata=[(CORRELATION_HEADER, sent)] if sent else []).name
    assert used != sent
    assert len(used) == 32


@pytest.mark.parametrize("kind", errors.AtelierError.__subclasses__())
def test_every_error_of_the_tree_arrives_as_itself(serve: Serve, kind: type[errors.AtelierError]) -> None:
    if kind is errors.InvalidArgumentError:
        raised: errors.AtelierError = errors.InvalidArgumentError(
            "a.b", "is –1", metadata={"k": "v"}, more=[errors.FieldViolation("c", "is empty")]
        )
    else:
        raised = kind("what is wrong – and why", reason="SOME_REASON", metadata={"k": "v"}, retry_after_seconds=0.25)

    def handler(request: object, context: object) -> pb.Tenant:
        raise raised

    with pytest.raises(kind) as caught, translated_errors():
        call(serve({"GetTenant": handler}), "GetTenant")
    received = caught.value
    assert type(received) is kind
    for attribute in ("message", "reason", "metadata", "retry_after_seconds"):
        assert getattr(received, attribute) == getattr(raised, attribute)
    assert getattr(received, "violations", None) == getattr(raised, "violations", None)


@pytest.mark.parametrize("character", ["x", "–"])
def test_error_that_is_too_long_for_headers_arrives_as_its_beginning(serve: Serve, character: str) -> None:
    text = 10_000 * character

    def handler(request: object, context: object) -> pb.Tenant:
        raise errors.InvalidArgumentError("a.b", text, reason="SOME_REASON", metadata={"k": text})

    with pytest.raises(errors.InvalidArgumentError) as caught, translated_errors():
        call(serve({"GetTenant": handler}), "GetTenant")
    received = caught.value
    assert (received.reason, received.violations[0].field) == ("SOME_REASON", "a.b")
    for part in (received.violations[0].description, received.metadata["k"]):
        assert part == len(part[:-1]) * character + "…"
        assert len(part) > 100


@pytest.mark.parametrize(
    ("method", "handler"),
    [("GetTenant", wait_for_ever), ("PublishVersion", wait_for_ever), ("DownloadFile", wait_for_ever_in_a_stream)],
)
def test_call_ends_at_the_service_s_own_deadline(serve: Serve, method: str, handler: Callable[..., Any]) -> None:
    server = serve({method: handler}, max_unary_seconds=0.1, max_stream_seconds=0.1)
    with pytest.raises(errors.DeadlineExceededError), translated_errors():
        call(server, method)


def test_method_that_is_not_there_is_unimplemented(serve: Serve) -> None:
    with grpc.insecure_channel(serve({}).address) as channel, pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary(f"/{SERVICE.full_name}/Nothing")(b"")
    assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED


def test_message_beyond_the_limit_is_refused(serve: Serve) -> None:
    server = serve({"GetTenant": lambda request, context: pb.Tenant()})
    with server.connect() as connection, pytest.raises(errors.ResourceExhaustedError), translated_errors():
        RegistryServiceStub(connection.channel).GetTenant(pb.GetTenantRequest(name="x" * 5 * 1024**2))


def test_reflection_describes_the_service_without_a_token(serve: Serve) -> None:
    server = serve({})
    with grpc.insecure_channel(server.address) as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        assert SERVICE.full_name in database.get_services()
        file = database.FindFileContainingSymbol(SERVICE.full_name)
    assert file.name == SERVICE.file.name


def test_draining_server_is_not_serving_and_lets_calls_finish(serve: Serve) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def handler(request: object, context: object) -> pb.Tenant:
        begun.set()
        assert go_on.wait(timeout=30)
        return pb.Tenant(name="finished")

    server = serve({"GetTenant": handler}, drain_seconds=0.5, grace_seconds=30)
    assert health(server.address, SERVICE.full_name) == "SERVING"
    with server.connect() as connection:
        running = RegistryServiceStub(connection.channel).GetTenant.future(pb.GetTenantRequest())
        assert begun.wait(timeout=30)
        drained = server.drain()
        wait_for_health(server, "NOT_SERVING")
        wait_for_health(server, "CONNECTION_REFUSED")
        with pytest.raises(errors.UnavailableError), translated_errors():
            call(server, "GetTenant")
        go_on.set()
        assert running.result().name == "finished"
    drained.result(timeout=30)


def test_calls_that_outlast_the_grace_are_cancelled(serve: Serve) -> None:
    begun = threading.Event()

    async def handler(request: object, context: object) -> pb.Tenant:
        begun.set()
        return await wait_for_ever(request, context)

    server = serve({"GetTenant": handler}, grace_seconds=0.1)
    with server.connect() as connection:
        running = RegistryServiceStub(connection.channel).GetTenant.future(pb.GetTenantRequest())
        assert begun.wait(timeout=30)
        server.drain().result(timeout=30)
        assert running.code() in (grpc.StatusCode.CANCELLED, grpc.StatusCode.UNAVAILABLE)
