"""What every RPC of every service answers to those who may not call it. One test file a service runs these checks."""

from __future__ import annotations

import grpc
import pytest
from google.protobuf.descriptor import MethodDescriptor

from atelier.errors import InvalidArgumentError, NotFoundError, PermissionDeniedError, UnauthenticatedError
from atelier.pb.common.v1.common_pb2 import Scope
from atelier.rpc.interceptor import OPEN_SERVICES
from atelier.rpc.scopes import ADMIN, OPERATOR, PUBLISHER, READER, TRAINER, required_scope, scope_name
from tests.harness.calls import (
    MISSING,
    OF_NO_TENANT,
    Ids,
    call,
    empty_request,
    registered_services,
    request_for,
)
from tests.harness.service import ServiceProcess, health

WEAKER: dict[Scope, tuple[Scope, ...]] = {
    READER: (OPERATOR,),
    TRAINER: (READER, PUBLISHER, OPERATOR),
    PUBLISHER: (READER, TRAINER, OPERATOR),
    ADMIN: (PUBLISHER, TRAINER, OPERATOR),
    OPERATOR: (ADMIN,),
}
"""The most that falls short, by what is needed."""


def check_all_are_walked(server: ServiceProcess, walked: list[MethodDescriptor]) -> None:
    """Reflection is open and lists the services whose RPCs are walked, health and itself; health is open too."""
    assert registered_services(server.address) - OPEN_SERVICES == {each.containing_service.full_name for each in walked}
    assert health(server.address) == "SERVING"
    for method in walked:
        assert health(server.address, method.containing_service.full_name) == "SERVING"


def check_credential_is_needed(server: ServiceProcess, method: MethodDescriptor) -> None:
    """Without one the answer is UNAUTHENTICATED, to a good request and to an empty one."""
    with grpc.insecure_channel(server.address) as channel:
        for request in (request_for(method, "-"), empty_request(method)):
            with pytest.raises(UnauthenticatedError) as caught:
                call(channel, method, request)
            assert caught.value.reason == "TOKEN_MISSING"


def check_scope_is_needed(server: ServiceProcess, method: MethodDescriptor, tenant: str, ids: Ids = MISSING) -> None:
    """Without it the answer is PERMISSION_DENIED, whatever exists and whatever is wrong with the request.

    Args:
        ids: of what the tenant has; a service that keeps nothing has none.
    """
    needed = required_scope(method.full_name)
    requests = [request_for(method, *named) for named in ((tenant, ids), (tenant, MISSING), ("nobody", MISSING))]
    with server.connect(tenant, *WEAKER[needed]) as connection:
        for request in (*requests, empty_request(method)):
            with pytest.raises(PermissionDeniedError) as caught:
                call(connection, method, request)
            assert caught.value.reason == "SCOPE_MISSING"
            assert caught.value.metadata == {"scope": scope_name(needed)}


def check_tenants_are_apart(server: ServiceProcess, method: MethodDescriptor, owner: str, ids: Ids) -> None:
    """A stranger with the right scope learns nothing: what the owner has is denied in the words of what nobody has."""
    assert method.name not in OF_NO_TENANT
    answers = set()
    with server.connect("stranger", required_scope(method.full_name)) as connection:
        for tenant, names in ((owner, ids), (owner, MISSING), ("nobody", ids), ("nobody", MISSING)):
            request = request_for(method, tenant, names)
            assert f"tenants/{tenant}" in str(request)
            with pytest.raises(PermissionDeniedError) as caught:
                call(connection, method, request)
            answers.add((caught.value.message, caught.value.reason, str(caught.value.metadata)))
    assert len(answers) == 1
    assert "PERMISSION_DENIED" in answers.pop()


def check_owner_finds_what_there_is(server: ServiceProcess, method: MethodDescriptor, owner: str, ids: Ids) -> None:
    """What strangers are tried with is there, and what is missing is NOT_FOUND to its owner alone."""
    with server.connect(owner, required_scope(method.full_name)) as connection:
        assert call(connection, method, request_for(method, owner, ids))
        with pytest.raises(NotFoundError):
            call(connection, method, request_for(method, owner, MISSING))


def check_empty_request_is_refused(server: ServiceProcess, method: MethodDescriptor, tenant: str) -> None:
    """With the right scope, and no more, the answer names the field that is missing."""
    with server.connect(tenant, required_scope(method.full_name)) as connection:
        with pytest.raises(InvalidArgumentError) as caught:
            call(connection, method, empty_request(method))
        assert caught.value.violations[0].field
