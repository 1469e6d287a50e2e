"""The calls of the race, by the kind of their operation: what is sent, and how the next one is chosen."""

from __future__ import annotations

import random
import uuid
from collections.abc import Callable, Mapping
from typing import Any

from atelier.client import Connection, RegistryClient
from atelier.client.connection import OWN_TENANT
from atelier.client.maintenance import MaintenanceClient
from atelier.client.registry import adapter_name
from atelier.errors import DataLossError
from atelier.pb.registry.v1 import registry_pb2 as pb
from atelier.pb.registry.v1.registry_pb2_grpc import RegistryServiceStub
from atelier.rpc.status import translated_errors
from tests.harness.files import adapter_files, version
from tests.harness.race.journal import Operation

TENANTS = ("race-one", "race-two", "race-three")
OPERATORS = "operators"
RETAINED, DELETED = "a0", "a1"
"""Adapters of which a retention policy deletes versions, and which are deleted as a whole."""
ADAPTERS = (RETAINED, DELETED, "a2", "a3", "a4")
ALIASES = ("prod", "beta")
DISTINCT_WEIGHTS = 12
"""Of all tenants together: most contents are shared, come back after they were collected, or both."""
_WEIGHTS = {
    "publish": 40,
    "download": 12,
    "move_alias": 14,
    "delete_alias": 2,
    "delete_version": 14,
    "undelete_version": 6,
    "purge": 4,
    "retain": 2,
    "delete_adapter": 1,
    "undelete_adapter": 2,
    "create_adapter": 2,
    "collect": 3,
}


class Caller:
    """One tenant at one replica."""

    def __init__(self, connection: Connection) -> None:
        self.sdk = RegistryClient(connection)
        self.stub = RegistryServiceStub(connection.channel)
        self.maintenance = MaintenanceClient(connection)


def choose(generator: random.Random) -> Operation:
    """What a client does next."""
    (kind,) = generator.choices(list(_WEIGHTS), list(_WEIGHTS.values()))
    tenant = "" if kind == "collect" else generator.choice(TENANTS)
    adapter = {"retain": RETAINED, "delete_adapter": DELETED, "undelete_adapter": DELETED}.get(kind)
    request_id = str(uuid.UUID(int=generator.getrandbits(128), version=4))
    operation = Operation(
        request_id=request_id, kind=kind, tenant=tenant, adapter=adapter or generator.choice(ADAPTERS)
    )
    if kind == "publish":
        operation.details["seed"] = generator.randrange(DISTINCT_WEIGHTS)
    if kind in ("move_alias", "delete_alias"):
        operation.details["alias"] = generator.choice(ALIASES)
    operation.details["pick"] = generator.random()
    return operation


def aim(operation: Operation, caller: Caller) -> bool:
    """Adds what a look at the registry tells; False when there is nothing to do."""
    kind, details = operation.kind, operation.details
    if kind in ("download", "move_alias", "delete_version", "undelete_version"):
        request = pb.ListVersionsRequest(
            parent=adapter_name(operation.adapter), page_size=20, show_deleted=kind == "undelete_version"
        )
        with translated_errors():
            found = list(caller.stub.ListVersions(request).versions)
        if kind == "undelete_version":
            found = [each for each in found if each.HasField("delete_time")]
        if not found:
            return False
        chosen = found[int(details["pick"] * len(found))]
        details["version"] = chosen.name
    if kind == "move_alias":
        aliases = {alias.name.rsplit("/", 1)[1]: alias.etag for alias in caller.sdk.aliases(operation.adapter)}
        details["etag"] = aliases.get(details["alias"], "")
    return True


def send(operation: Operation, caller: Caller) -> str:
    """Sends an operation, for the first time or again; returns the name of what it made."""
    with translated_errors():
        return _CALLS[operation.kind](operation, caller) or ""


def publication(operation: Operation) -> tuple[pb.Version, dict[str, bytes]]:
    """What a `publish` publishes: no other operation's version has the same digest."""
    return version(instance_prompt=operation.request_id), adapter_files(operation.details["seed"])


def _publish(operation: Operation, caller: Caller) -> str:
    described, contents = publication(operation)
    return caller.sdk.publish(operation.adapter, described, contents, request_id=operation.request_id).name


def _download(operation: Operation, caller: Caller) -> None:
    request = pb.GetVersionRequest(name=operation.details["version"])
    chosen = caller.stub.GetVersion(request)
    file = chosen.files[int(operation.details["pick"] * len(chosen.files))]
    try:
        caller.sdk.download(chosen, file.path)
    except DataLossError:
        caller.stub.GetVersion(request)  # that it was purged meanwhile is another answer
        raise


def _move_alias(operation: Operation, caller: Caller) -> None:
    name = f"{adapter_name(operation.adapter)}/aliases/{operation.details['alias']}"
    alias = pb.Alias(name=name, version=operation.details["version"], etag=operation.details["etag"])
    caller.stub.UpdateAlias(
        pb.UpdateAliasRequest(alias=alias, allow_missing=not alias.etag, request_id=operation.request_id)
    )


def _delete_alias(operation: Operation, caller: Caller) -> None:
    name = f"{adapter_name(operation.adapter)}/aliases/{operation.details['alias']}"
    caller.stub.DeleteAlias(pb.DeleteAliasRequest(name=name, request_id=operation.request_id))


def _delete_version(operation: Operation, caller: Caller) -> None:
    name = operation.details["version"]
    caller.stub.DeleteVersion(pb.DeleteVersionRequest(name=name, request_id=operation.request_id))


def _undelete_version(operation: Operation, caller: Caller) -> None:
    name = operation.details["version"]
    caller.stub.UndeleteVersion(pb.UndeleteVersionRequest(name=name, request_id=operation.request_id))


def _purge(operation: Operation, caller: Caller) -> None:
    caller.stub.PurgeDeleted(pb.PurgeDeletedRequest(parent=OWN_TENANT, request_id=operation.request_id))


def _retain(operation: Operation, caller: Caller) -> None:
    caller.stub.ApplyRetention(
        pb.ApplyRetentionRequest(
            parent=adapter_name(operation.adapter),
            policy=pb.RetentionPolicy(keep_last=3),
            request_id=operation.request_id,
        )
    )


def _delete_adapter(operation: Operation, caller: Caller) -> None:
    name = adapter_name(operation.adapter)
    caller.stub.DeleteAdapter(pb.DeleteAdapterRequest(name=name, force=True, request_id=operation.request_id))


def _undelete_adapter(operation: Operation, caller: Caller) -> None:
    name = adapter_name(operation.adapter)
    caller.stub.UndeleteAdapter(pb.UndeleteAdapterRequest(name=name, request_id=operation.request_id))


def _create_adapter(operation: Operation, caller: Caller) -> None:
    caller.stub.CreateAdapter(
        pb.CreateAdapterRequest(parent=OWN_TENANT, adapter_id=operation.adapter, request_id=operation.request_id)
    )


def _collect(operation: Operation, caller: Caller) -> None:
    caller.maintenance.collect_garbage()


_CALLS: Mapping[str, Callable[[Operation, Caller], Any]] = {
    "publish": _publish,
    "download": _download,
    "move_alias": _move_alias,
    "delete_alias": _delete_alias,
    "delete_version": _delete_version,
    "undelete_version": _undelete_version,
    "purge": _purge,
    "retain": _retain,
    "delete_adapter": _delete_adapter,
    "undelete_adapter": _undelete_adapter,
    "create_adapter": _create_adapter,
    "collect": _collect,
}
