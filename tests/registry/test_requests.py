"""Every mutating RPC that has a `request_id`: a retry with it is safe, and `validate_only` changes nothing.

Those about bytes are tested with what they publish; here are all others, the operators' too. That an RPC has one, or
why not, is tested in tests/rpc/test_protos.py.
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest
from google.protobuf.message import Message
from sqlalchemy import text
from sqlalchemy.orm import Session

from atelier.client import BaseModelClient, Connection, RegistryClient
from atelier.errors import AtelierError, FailedPreconditionError, InvalidArgumentError, NotFoundError
from atelier.pb.common.v1.common_pb2 import BaseModel
from atelier.pb.registry.v1 import registry_pb2 as pb
from atelier.pb.registry.v1.base_models_pb2 import BaseModelDescription, RegisterBaseModelRequest
from atelier.pb.registry.v1.maintenance_pb2 import Quota, UpdateQuotaRequest
from atelier.pb.registry.v1.registry_pb2_grpc import RegistryServiceStub
from atelier.rpc.call import Call, set_call
from atelier.rpc.scopes import ADMIN, OPERATOR
from atelier.rpc.status import translated_errors
from atelier.storage.database import Database, utc_now
from atelier.storage.requests import forget_old, perform
from services.registry.main import MIGRATIONS
from services.registry.tables import Request
from tests.harness.calls import REGISTRY, fields_of, methods
from tests.harness.files import fake_base
from tests.harness.registry import RegistryServer
from tests.registry.lifecycle import delete_version, fox_alias, fox_version, publish_foxes
from tests.registry.uploads import OWN_FOX

OWN = "tenants/-"
GONE = f"{OWN}/adapters/gone"
RACERS = 8
ROUNDS = 10
METHODS = {method.input_type: method for method in methods(REGISTRY)}
Look = Callable[[], list[Any]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """A mutating request.

    The tenant has an adapter `fox` with versions 1 to 4, of which 4 is deleted and `prod` points at 1, and a deleted
    adapter `gone`. The tenant's caller is the operator too.
    """

    request: Any
    """Succeeds."""
    wrong: Any
    """Fails."""
    reason: str
    """Why."""
    meanwhile: Message
    """A request that changes what `request` changed."""

    @property
    def method(self) -> str:
        """Name of the RPC."""
        return self.request.DESCRIPTOR.name.removesuffix("Request")


def write_description(adapter: str) -> pb.UpdateAdapterRequest:
    """Describes an adapter otherwise."""
    return pb.UpdateAdapterRequest(adapter=pb.Adapter(name=f"{OWN}/adapters/{adapter}", description="meanwhile"))


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
        meanwhile=pb.UndeleteAdapterRequest(name=OWN_FOX),
    ),
    Case(
        request=pb.UndeleteAdapterRequest(name=GONE),
        wrong=pb.UndeleteAdapterRequest(name=OWN_FOX),
        reason="ADAPTER_NOT_DELETED",
        meanwhile=pb.DeleteAdapterRequest(name=GONE),
    ),
    Case(
        request=pb.DeleteVersionRequest(name=fox_version(2)),
        wrong=pb.DeleteVersionRequest(name=fox_version(1)),
        reason="VERSION_ALIASED",
        meanwhile=pb.UndeleteVersionRequest(name=fox_version(2)),
    ),
    Case(
        request=pb.UndeleteVersionRequest(name=fox_version(4)),
        wrong=pb.UndeleteVersionRequest(name=fox_version(3)),
        reason="VERSION_NOT_DELETED",
        meanwhile=pb.DeleteVersionRequest(name=fox_version(4)),
    ),
    Case(
        request=pb.PurgeDeletedRequest(parent=OWN),
        wrong=pb.PurgeDeletedRequest(parent=f"{OWN}/adapters/nobody"),
        reason="ADAPTER_NOT_FOUND",
        meanwhile=pb.DeleteVersionRequest(name=fox_version(3)),
    ),
    Case(
        request=pb.ApplyRetentionRequest(parent=OWN_FOX, policy=pb.RetentionPolicy(keep_last=1)),
        wrong=pb.ApplyRetentionRequest(parent=GONE),
        reason="ADAPTER_DELETED",
        meanwhile=pb.UndeleteVersionRequest(name=fox_version(2)),
    ),
    Case(
        request=move_alias(2),
        wrong=move_alias(4),
        reason="VERSION_DELETED",
        meanwhile=move_alias(3),
    ),
    Case(
        request=pb.DeleteAliasRequest(name=fox_alias("prod")),
        wrong=pb.DeleteAliasRequest(name=fox_alias("best")),
        reason="ALIAS_NOT_FOUND",
        meanwhile=move_alias(2),
    ),
]


def base_of(tenant: str) -> BaseModelDescription:
    """A base model that only this tenant tells of."""
    base = fake_base()
    base.base_model.CopyFrom(BaseModel(model="a-sd", digest=f"sha256:{hashlib.sha256(tenant.encode()).hexdigest()}"))
    return base


def changed_base() -> BaseModelDescription:
    """The base model that the registry knows, with other layers."""
    base = fake_base()
    del base.components[0].layers[0]
    return base


def set_quota(tenant: str, **limits: int) -> UpdateQuotaRequest:
    """Sets what a tenant may store."""
    return UpdateQuotaRequest(quota=Quota(name=f"quotas/{tenant}", **limits))


def operator_cases(tenant: str) -> list[Case]:
    """What an operator does, for one tenant alone: all others would see it."""
    return [
        Case(
            request=set_quota(tenant, max_versions=10),
            wrong=set_quota(tenant, max_versions=-1),
            reason="INVALID_FIELD",
            meanwhile=set_quota(tenant, max_versions=20),
        ),
        Case(
            request=RegisterBaseModelRequest(base_model=base_of(tenant)),
            wrong=RegisterBaseModelRequest(base_model=changed_base()),
            reason="BASE_MODEL_DIFFERS",
            meanwhile=write_description("fox"),  # nothing changes a base model
        ),
    ]


METHODS_WITH_CASES = [case.method for case in [*CASES, *operator_cases("t")]]


@pytest.fixture(params=METHODS_WITH_CASES)
def case(request: pytest.FixtureRequest, tenant: str) -> Case:
    """Each case in turn."""
    return next(case for case in [*CASES, *operator_cases(tenant)] if case.method == request.param)


@pytest.fixture
def registry_connection(registry_server: RegistryServer, tenant: str) -> Iterator[Connection]:
    """The test's tenant, as its administrator and the operator."""
    with registry_server.connect(tenant, ADMIN, OPERATOR) as connection:
        yield connection


@pytest.fixture(autouse=True)
def state(registry: RegistryClient, registry_stub: RegistryServiceStub) -> None:
    """What the cases begin with."""
    publish_foxes(registry, 4)
    delete_version(registry_stub, 4)
    registry.set_alias("fox", "prod", "1")
    registry.create_adapter("gone")
    registry_stub.DeleteAdapter(pb.DeleteAdapterRequest(name=GONE))


@pytest.fixture
def everything(registry_connection: Connection, tenant: str) -> Look:
    """Finds all that the tenant has, and what operators have said for it."""
    stub, operator = RegistryServiceStub(registry_connection.channel), BaseModelClient(registry_connection)

    def look() -> list[Any]:
        found = look_at_tenant(stub)
        with contextlib.suppress(NotFoundError):
            found.append(operator.base_model(base_of(tenant).base_model.digest))
        return found

    return look


def look_at_tenant(stub: RegistryServiceStub) -> list[Any]:
    """All that the tenant has, and its quota."""
    found: list[Any] = [
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
    method = METHODS[request.DESCRIPTOR]
    changed = type(request)()
    changed.MergeFrom(request)
    for field, value in fields.items():
        setattr(changed, field, value)
    with translated_errors():
        return connection.channel.unary_unary(f"/{method.containing_service.full_name}/{method.name}")(
            changed.SerializeToString()
        )


def test_retry_answers_the_same_bytes_whatever_has_happened_since(
    registry_connection: Connection, everything: Look, case: Case
) -> None:
    request_id = str(uuid.uuid4())
    first = send(registry_connection, case.request, request_id=request_id)
    send(registry_connection, case.meanwhile)
    before = everything()
    for _ in range(3):
        assert send(registry_connection, case.request, request_id=request_id) == first
    assert everything() == before


def test_retries_at_the_same_time_are_one_request(registry_connection: Connection, case: Case) -> None:
    request_id = str(uuid.uuid4())
    with ThreadPoolExecutor(RACERS) as pool:
        attempts = [pool.submit(send, registry_connection, case.request, request_id=request_id) for _ in range(RACERS)]
        assert len({attempt.result() for attempt in attempts}) == 1


def test_request_id_of_another_request_is_refused(
    registry_connection: Connection, everything: Look, case: Case
) -> None:
    request_id = str(uuid.uuid4())
    send(registry_connection, case.request, request_id=request_id)
    before = everything()
    other_method = next(other.request for other in CASES if other.method != case.method)
    for other in (case.wrong, other_method):
        with pytest.raises(InvalidArgumentError) as caught:
            send(registry_connection, other, request_id=request_id)
        assert (caught.value.reason, caught.value.violations[0].field) == ("REQUEST_ID_REUSED", "request_id")
    assert everything() == before


@pytest.mark.parametrize("request_id", ["again", "0" * 32, str(uuid.UUID(int=0)) + "0"])
def test_request_id_must_be_a_uuid(
    registry_connection: Connection, everything: Look, case: Case, request_id: str
) -> None:
    before = everything()
    with pytest.raises(InvalidArgumentError) as caught:
        send(registry_connection, case.request, request_id=request_id)
    assert caught.value.violations[0].field == "request_id"
    assert everything() == before


@pytest.mark.parametrize("request_id", ["", str(uuid.UUID(int=1))], ids=["without-id", "with-id"])
def test_validate_only_changes_nothing(
    registry_connection: Connection, everything: Look, case: Case, request_id: str
) -> None:
    before = everything()
    send(registry_connection, case.request, request_id=request_id, validate_only=True)
    assert everything() == before
    send(registry_connection, case.request, request_id=request_id)
    assert everything() != before


@pytest.mark.parametrize("validate_only", [True, False])
def test_what_is_refused_is_refused_alike_and_not_remembered(
    registry_connection: Connection, everything: Look, case: Case, validate_only: bool
) -> None:
    before, request_id = everything(), str(uuid.uuid4())
    for _ in range(2):
        with pytest.raises(AtelierError) as caught:
            send(registry_connection, case.wrong, request_id=request_id, validate_only=validate_only)
        assert caught.value.reason == case.reason
    assert everything() == before
    send(registry_connection, case.request, request_id=request_id)


def test_request_ids_of_two_tenants_are_two(
    registry_server: RegistryServer, registry_connection: Connection, tenant: str
) -> None:
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


def test_every_rpc_with_a_request_id_is_tried() -> None:
    with_request_id = {
        method.name for method in methods(REGISTRY) if {"request_id", "validate_only"} <= fields_of(method)
    }
    about_bytes = {"PublishVersion", "ImportVersion", "CreateUpload", "CompleteUpload", "DeleteUpload"}
    assert with_request_id - about_bytes == set(METHODS_WITH_CASES)
