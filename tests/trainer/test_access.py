"""Every RPC of the trainer: no credential, no answer; no scope, no answer; no tenant reaches another one's."""

from __future__ import annotations

import pytest
from google.protobuf.descriptor import MethodDescriptor

from tests.harness import access
from tests.harness.calls import TRAINER, methods
from tests.harness.trainer import TrainerServer

METHODS = methods(TRAINER)
every_method = pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)


def test_every_registered_service_is_walked(trainer_server: TrainerServer) -> None:
    access.check_all_are_walked(trainer_server, METHODS)


@every_method
def test_call_without_a_credential_is_unauthenticated(trainer_server: TrainerServer, method: MethodDescriptor) -> None:
    access.check_credential_is_needed(trainer_server, method)


@every_method
def test_too_weak_a_credential_is_denied_before_anything_is_looked_at(
    trainer_server: TrainerServer, tenant: str, method: MethodDescriptor
) -> None:
    access.check_scope_is_needed(trainer_server, method, tenant)


@every_method
def test_name_of_another_tenant_is_denied(trainer_server: TrainerServer, tenant: str, method: MethodDescriptor) -> None:
    access.check_tenants_are_apart(trainer_server, method, tenant)


@every_method
def test_empty_request_is_an_invalid_argument(
    trainer_server: TrainerServer, tenant: str, method: MethodDescriptor
) -> None:
    access.check_empty_request_is_refused(trainer_server, method, tenant)
