"""What tests of deletion, retention and aliases share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from atelier.client import RegistryClient
from atelier.errors import AtelierError
from atelier.pb.registry.v1 import registry_pb2 as pb
from atelier.pb.registry.v1.registry_pb2_grpc import RegistryServiceStub
from atelier.rpc.status import translated_errors
from tests.harness.files import adapter_files, version
from tests.registry.uploads import OWN_FOX


def publish_foxes(registry: RegistryClient, count: int) -> list[pb.Version]:
    """The adapter `fox` with so many versions, of which no two have the same weights."""
    registry.create_adapter("fox")
    return [registry.publish("fox", version(), adapter_files(seed)) for seed in range(count)]


def fox_version(number: int) -> str:
    """Name of a version of the adapter `fox`."""
    return f"{OWN_FOX}/versions/{number}"


def fox_alias(alias: str) -> str:
    """Name of an alias of the adapter `fox`."""
    return f"{OWN_FOX}/aliases/{alias}"


def delete_version(stub: RegistryServiceStub, number: int) -> pb.Version:
    """Deletes a version of the adapter `fox`."""
    with translated_errors():
        return stub.DeleteVersion(pb.DeleteVersionRequest(name=fox_version(number)))


def delete_fox(stub: RegistryServiceStub) -> pb.Adapter:
    """Deletes the adapter `fox` with its versions."""
    with translated_errors():
        return stub.DeleteAdapter(pb.DeleteAdapterRequest(name=OWN_FOX, force=True))


def visible_numbers(registry: RegistryClient) -> list[int]:
    """Numbers of the versions of the adapter `fox`, the newest first."""
    return [int(found.name.rsplit("/", 1)[1]) for found in registry.versions("fox")]


@contextmanager
def refused(kind: type[AtelierError], reason: str) -> Iterator[None]:
    """Expects the block to raise this error for this reason."""
    with pytest.raises(kind) as caught, translated_errors():
        yield
    assert caught.value.reason == reason
