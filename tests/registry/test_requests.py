"""Every mutating RPC of RegistryService: a retry with its `request_id` is safe, and `validate_only` changes nothing.

Those that stream bytes are tested with what they publish; here are all others.
"""

from __future__ import annotations

import contextlib
import threading
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest
from google.protobuf.descriptor import MethodDescriptor
from sqlalchemy import text
from sqlalchemy.orm import Session

from atelier.client import Connection, RegistryClient
from atelier.errors import AtelierError, FailedPreconditionError, InvalidArgumentError
from atelier.pb.registry.v1 import registry_pb2 as pb
from atelier.pb.registry.v1.registry_pb2_grpc import RegistryServiceStub
from atelier.rpc.call import Call, set_call
from atelier.rpc.scopes import READER, required_scope
from atelier.rpc.status import translated_errors
from atelier.storage.database import Database, utc_now
from atelier.storage.requests import forget_old, perform
from services.registry.main import MIGRATIONS
from services.registry.tables import Request
from tests.registry.lifecycle import delete_version, fox_alias, fox_version, publish_foxes
from tests.registry.uploads import OWN_FOX

OWN = "tenants/-"
GONE = f"{OWN}/adapters/gone"
RACERS = 8
ROUNDS = 10
SERVICE = pb.DESCRIPTOR.services_by_name["RegistryService"]
Work = Callable[[RegistryServiceStub], object]


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """A mutating request.

    The tenant has an adapter `fox` with versions 1 to 4, of which 4 is deleted and `prod` points at 1, and a deleted
    adapter `gone`.
    """

    request: Any
    """Succeeds."""
    wrong: Any
    """Fails."""
    reason: str
    """Why."""
    meanwhile: Work
    """Changes what `request` changed."""

    @property
    def method(self) -> str:
        """Name of the RPC."""
        return self.request.DESCRIPTOR.name.removesuffix("Request")


def write_description(adapter: str) -> Work:
    """Describes an adapter otherwise."""
    changed = pb.Adapter(name=f"{OWN}/adapters/{adapter}", description="meanwhile")
    return lambda stub: stub.UpdateAdapter(pb.UpdateAdapterRequest(adapter=changed))


def move_alias(number: int, *, alias: str = "prod") -> pb.UpdateAliasRequest:
    """Points an alias at a version of `fox`, whether or not it is there."""
    wanted = pb.Alias(name=fox_alias(alias), version=fox_version(number))
    return pb.UpdateAliasRequest(alias=wanted, allow_missing=True)


CASES = [
    Case(
        request=pb.CreateAdapterRequest(parent=OWN, adapter_id="owl", adapter=pb.Adapter(description="an owl")),
        wrong=pb.CreateAdapterRequest(parent=OWN, adapter_id="fox"),
        reason="ADAPTER_EXISTS",
        meanwhile=write_description("owl"),
    ),
    Case(
        request=pb.UpdateAdapterRequest(adapter=pb.Adapter(name=OWN_FOX, tags=["a"])),
        wrong=pb.UpdateAdapterRequest(adapter=pb.Adapter(name=OWN_FOX, tags=["a"], etag="0")),
        reason="ETAG_MISMATCH",
        meanwhile=write_description("fox"),
    ),
    Case(
        request=pb.DeleteAdapterRequest(name=OWN_FOX, force=True),
        wrong=pb.DeleteAdapterRequest(name=OWN_FOX),
        reason="ADAPTER_HAS_VERSIONS",
        meanwhile=lambda stub: stub.UndeleteAdapter(pb.UndeleteAdapterRequest(name=OWN_FOX)),
    ),
    Case(
        request=pb.UndeleteAdapterRequest(name=GONE),
        wrong=pb.UndeleteAdapterRequest(name=OWN_FOX),
        reason="ADAPTER_NOT_DELETED",
        meanwhile=lambda stub: stub.DeleteAdapter(pb.DeleteAdapterRequest(name=GONE)),
    ),
    Case(
        request=pb.DeleteVersionRequest(name=fox_version(2)),
        wrong=pb.DeleteVersionRequest(name=fox_version(1)),
        reason="VERSION_ALIASED",
        meanwhile=lambda stub: stub.UndeleteVersion(pb.UndeleteVersionRequest(name=fox_version(2))),
    ),
    Case(
        request=pb.UndeleteVersionRequest(name=fox_version(4)),
        wrong=pb.UndeleteVersionRequest(name=fox_version(3)),
        reason="VERSION_NOT_DELETED",
        meanwhile=lambda stub: stub.DeleteVersion(pb.DeleteVersionRequest(name=fox_version(4))),
    ),
    Case(
        request=pb.PurgeDeletedRequest(parent=OWN),
        wrong=pb.PurgeDeletedRequest(parent=f"{OWN}/adapters/nobody"),
        reason="ADAPTER_NOT_FOUND",
        meanwhile=lambda stub: stub.DeleteVersion(pb.DeleteVersionRequest(name=fox_version(3))),
    ),
    Case(
        request=pb.ApplyRetentionRequest(parent=OWN_FOX, policy=pb.RetentionPolicy(keep_last=1)),
        wrong=pb.ApplyRetentionRequest(parent=GONE),
        reason="ADAPTER_DELETED",
        meanwhile=lambda stub: stub.UndeleteVersion(pb.UndeleteVersionRequest(name=fox_version(2))),
    ),
    Case(
        request=move_alias(2),
        wrong=move_alias(4),
        reason="VERSION_DELETED",
        meanwhile=lambda stub: stub.UpdateAlias(move_alias(3)),
    ),
    Case(
        request=pb.DeleteAliasRequest(name=fox_alias("prod")),
        wrong=pb.DeleteAliasRequest(name=fox_alias("best")),
        reason="ALIAS_NOT_FOUND",
        meanwhile=lambda stub: stub.UpdateAlias(move_alias(2)),
    ),
]
each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.method)


@pytest.fixture(autouse=True)
def state(registry: RegistryClient, registry_stub: RegistryServiceStub) -> None:
    """What the cases begin with."""
    publish_foxes(registry, 4)
    delete_version(registry_stub, 4)
    registry.set_alias("fox", "prod", "1")
    registry.create_adapter("gone")
    registry_stub.DeleteAdapter(pb.DeleteAdapterRequest(name=GONE))


def everything(stub: RegistryServiceStub) -> list[Any]:
    """All that the tenant has."""
    found = [
        stub.GetTenant(pb.GetTenantRequest(name=OWN)),
        stub.ListAdapters(pb.ListAdaptersRequest(parent=OWN, show_deleted=True)),
        stub.ListVersions(pb.ListVersionsRequest(parent=f"{OWN}/adapters/-", show_deleted=True)),
        stub.ListAliasMoves(pb.ListAliasMovesRequest(parent=OWN_FOX)),
    ]
    with contextlib.suppress(FailedPreconditionError), translated_errors():  # while the adapter is deleted
        found.append(stub.ListAliases(pb.ListAliasesRequest(parent=OWN_FOX)))
    return found


def send(connection: Connection, request: Any, **fields: Any) -> bytes:
    """Sends a request with these fields changed; the answer as it came."""
    method = request.DESCRIPTOR.name.removesuffix("Request")
    changed = type(request)()
    changed.MergeFrom(request)
    for field, value in fields.items():
        setattr(changed, field, value)
    with translated_errors():
        return connection.channel.unary_unary(f"/{SERVICE.full_name}/{method}")(changed.SerializeToString())


@each_case
def test_retry_answers_the_same_bytes_whatever_has_happened_since(
    registry_connection: Connection, registry_stub: RegistryServiceStub, case: Case
) -> None:
    request_id = str(uuid.uuid4())
    first = send(registry_connection, case.request, request_id=request_id)
    case.meanwhile(registry_stub)
    before = everything(registry_stub)
    for _ in range(3):
        assert send(registry_connection, case.request, request_id=request_id) == first
    assert everything(registry_stub) == before


@each_case
def test_retries_at_the_same_time_are_one_request(registry_connection: Connection, case: Case) -> None:
    request_id = str(uuid.uuid4())
    with ThreadPoolExecutor(RACERS) as pool:
        attempts = [pool.submit(send, registry_connection, case.request, request_id=request_id) for _ in range(RACERS)]
        assert len({attempt.result() for attempt in attempts}) == 1


@each_case
def test_request_id_of_another_request_is_refused(
    registry_connection: Connection, registry_stub: RegistryServiceStub, case: Case
) -> None:
    request_id = str(uuid.uuid4())
    send(registry_connection, case.request, request_id=request_id)
    before = everything(registry_stub)
    other_method = next(other.request for other in CASES if other.method != case.method)
    for other in (case.wrong, other_method):
        with pytest.raises(InvalidArgumentError) as caught:
            send(registry_connection, other, request_id=request_id)
        assert (caught.value.reason, caught.value.violations[0].field) == ("REQUEST_ID_REUSED", "request_id")
    assert everything(registry_stub) == before


@each_case
@pytest.mark.parametrize("request_id", ["again", "0" * 32, str(uuid.UUID(int=0)) + "0"])
def test_request_id_must_be_a_uuid(
    registry_connection: Connection, registry_stub: RegistryServiceStub, case: Case, request_id: str
) -> None:
    before = everything(registry_stub)
    with pytest.raises(InvalidArgumentError) as caught:
        send(registry_connection, case.request, request_id=request_id)
    assert caught.value.violations[0].field == "request_id"
    assert everything(registry_stub) == before


@each_case
@pytest.mark.parametrize("request_id", ["", str(uuid.UUID(int=1))], ids=["without-id", "with-id"])
def test_validate_only_changes_nothing(
    registry_connection: Connection, registry_stub: RegistryServiceStub, case: Case, request_id: str
) -> None:
    before = everything(registry_stub)
    send(registry_connection, case.request, request_id=request_id, validate_only=True)
    assert everything(registry_stub) == before
    send(registry_connection, case.request, request_id=request_id)
    assert everything(registry_stub) != before


@each_case
@pytest.mark.parametrize("validate_only", [True, False])
def test_what_is_refused_is_refused_alike_and_not_remembered(
    registry_connection: Connection, registry_stub: RegistryServiceStub, case: Case, validate_only: bool
) -> None:
    before, request_id = everything(registry_stub), str(uuid.uuid4())
    for _ in range(2):
        with pytest.raises(AtelierError) as caught:
            send(registry_connection, case.wrong, request_id=request_id, validate_only=validate_only)
        assert caught.value.reason == case.reason
    assert everything(registry_stub) == before
    send(registry_connection, case.request, request_id=request_id)


def test_request_ids_of_two_tenants_are_two(registry_server: Any, registry_connection: Connection, tenant: str) -> None:
    request, request_id = CASES[0].request, str(uuid.uuid4())
    with registry_server.connect(f"{tenant}-2") as stranger:
        theirs, ours = (send(each, request, request_id=request_id) for each in (stranger, registry_connection))
    assert theirs != ours


def as_acme(work: Callable[[], pb.Adapter]) -> pb.Adapter:
    """Works as if a call of the tenant `acme` were being served."""
    context = copy_context()
    context.run(set_call, Call(tenant="acme", subject="test", correlation_id=""))
    return context.run(work)


def test_of_the_same_request_at_the_same_time_one_does_the_work(database_url: str) -> None:
    """On either database, and not because the work would fail the second time."""
    database = Database(database_url, MIGRATIONS)
    database.migrate()
    done: list[str] = []

    def work(session: Session) -> pb.Adapter:
        done.append(str(session.scalar(text("SELECT 1"))))
        return pb.Adapter(description=str(len(done)))

    def attempt(request: pb.CreateAdapterRequest, start: threading.Barrier) -> pb.Adapter:
        start.wait()
        return as_acme(lambda: perform(database, Request, request, pb.Adapter, work))

    with ThreadPoolExecutor(RACERS) as pool:
        for round_number in range(1, ROUNDS + 1):
            request, start = pb.CreateAdapterRequest(request_id=str(uuid.uuid4())), threading.Barrier(RACERS)
            answers = list(pool.map(attempt, [request] * RACERS, [start] * RACERS))
            assert answers == [pb.Adapter(description=str(round_number))] * RACERS
    assert len(done) == ROUNDS
    database.close()


def test_old_answers_are_forgotten(database_url: str) -> None:
    database = Database(database_url, MIGRATIONS)
    database.migrate()
    request = pb.CreateAdapterRequest(request_id=str(uuid.uuid4()))

    def answer(description: str) -> str:
        made = pb.Adapter(description=description)
        return as_acme(lambda: perform(database, Request, request, pb.Adapter, lambda session: made)).description

    assert answer("first") == answer("second") == "first"
    for age, expected in ((timedelta(minutes=1), "first"), (timedelta(), "third")):
        with database.transaction() as session:
            forget_old(session, Request, utc_now() - age)
        assert answer("third") == expected
    database.close()


def fields_of(method: MethodDescriptor) -> set[str]:
    """The fields of a method's request: of a stream, of the spec that begins it."""
    fields = method.input_type.fields_by_name
    if "spec" in fields and fields["spec"].message_type:
        fields = fields["spec"].message_type.fields_by_name
    return set(fields)


def test_every_mutating_rpc_can_be_retried_and_tried_out() -> None:
    mutating = {
        method.name: fields_of(method)
        for method in SERVICE.methods
        if required_scope(method.full_name) != READER and not method.name.startswith("Get")
    }
    careless = {name for name, fields in mutating.items() if not {"request_id", "validate_only"} <= fields}
    assert careless == {"WriteUpload"}  # safe to retry by its offset
    with_bytes = {"PublishVersion", "ImportVersion", "CreateUpload", "CompleteUpload", "DeleteUpload"}
    assert mutating.keys() - careless - with_bytes == {case.method for case in CASES}
