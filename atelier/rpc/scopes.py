"""What a credential allows, and what each RPC asks for.

ADMIN includes PUBLISHER and TRAINER, each of which includes READER. OPERATOR stands apart. What an RPC asks for is an
option of its method in the protos; a method without it asks for what nobody has.
"""

from __future__ import annotations

from collections.abc import Iterable

from google.protobuf import descriptor_pool

from atelier.errors import PermissionDeniedError
from atelier.pb.common.v1 import common_pb2
from atelier.pb.common.v1.common_pb2 import Scope

READER, TRAINER, PUBLISHER = common_pb2.SCOPE_READER, common_pb2.SCOPE_TRAINER, common_pb2.SCOPE_PUBLISHER
ADMIN, OPERATOR = common_pb2.SCOPE_ADMIN, common_pb2.SCOPE_OPERATOR
_PREFIX = "SCOPE_"
_INCLUDED: dict[Scope, frozenset[Scope]] = {
    READER: frozenset({READER}),
    TRAINER: frozenset({TRAINER, READER}),
    PUBLISHER: frozenset({PUBLISHER, READER}),
    ADMIN: frozenset({ADMIN, PUBLISHER, TRAINER, READER}),
    OPERATOR: frozenset({OPERATOR}),
}
_BY_NAME = {Scope.Name(scope).removeprefix(_PREFIX): scope for scope in _INCLUDED}
SCOPE_NAMES = tuple(_BY_NAME)
"""READER and so on: how tokens, tables and messages for people name scopes."""


def with_included(scopes: Iterable[Scope]) -> frozenset[Scope]:
    """The scopes and all that they include; scopes that are not known here allow nothing."""
    return frozenset().union(*(_INCLUDED.get(scope, frozenset()) for scope in scopes))


def scope_name(scope: Scope) -> str:
    """READER for SCOPE_READER."""
    return Scope.Name(scope).removeprefix(_PREFIX)


def scope_named(name: str) -> Scope:
    """SCOPE_READER for READER; ValueError for what is none of SCOPE_NAMES."""
    if name not in SCOPE_NAMES:
        raise ValueError(f"{name!r} is no scope; there are {', '.join(SCOPE_NAMES)}")
    return _BY_NAME[name]


def required_scope(method_full_name: str) -> Scope:
    """What a method such as `atelier.registry.v1.RegistryService.GetTenant` asks for; unspecified closes it."""
    method = descriptor_pool.Default().FindMethodByName(method_full_name)
    return method.GetOptions().Extensions[common_pb2.required_scope]  # type: ignore[index]  # the stub knows no kind


def check_scope(held: Iterable[Scope], needed: Scope) -> None:
    """Raises PermissionDeniedError unless the scopes, or what they include, hold the needed one."""
    if needed not in with_included(held):
        name = scope_name(needed)
        raise PermissionDeniedError(
            f"the call needs the scope {name}, which the credential does not have",
            reason="SCOPE_MISSING",
            metadata={"scope": name},
        )
