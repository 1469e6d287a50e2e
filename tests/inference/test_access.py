"""Every RPC of the inference service: no credential, no answer; no scope, no answer."""

from __future__ import annotations

import pytest
from google.protobuf.descriptor import MethodDescriptor

from tests.harness import access
from tests.harness.calls import INFERENCE, MAY_BE_EMPTY, methods
from tests.harness.inference import InferenceServer

METHODS = methods(INFERENCE)
every_method = pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)


def test_every_registered_service_is_walked(inference_server: InferenceServer) -> None:
    access.check_all_are_walked(inference_server, METHODS)


@every_method
def test_call_without_a_credential_is_unauthenticated(
    inference_server: InferenceServer, method: MethodDescriptor
) -> None:
    access.check_credential_is_needed(inference_server, method)


@every_method
def test_too_weak_a_credential_is_denied_before_anything_is_looked_at(
    inference_server: InferenceServer, tenant: str, method: MethodDescriptor
) -> None:
    access.check_scope_is_needed(inference_server, method, tenant)


@pytest.mark.parametrize(
    "method", [each for each in METHODS if each.name not in MAY_BE_EMPTY], ids=lambda method: method.name
)
def test_empty_request_is_an_invalid_argument(
    inference_server: InferenceServer, tenant: str, method: MethodDescriptor
) -> None:
    access.check_empty_request_is_refused(inference_server, method, tenant)
