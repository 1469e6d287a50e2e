"""Client of the registry's base models."""

from __future__ import annotations

from collections.abc import Iterator

from atelier.client.connection import Connection, fresh_request_id, paged
from atelier.pb.registry.v1 import base_models_pb2 as pb
from atelier.pb.registry.v1.base_models_pb2_grpc import BaseModelServiceStub
from atelier.rpc.status import translated_errors


class BaseModelClient:
    """The base models that adapters are made for. Telling of one takes a credential of an operator."""

    def __init__(self, connection: Connection) -> None:
        self._stub = BaseModelServiceStub(connection.channel)

    def register(self, base_model: pb.BaseModelDescription) -> pb.BaseModelDescription:
        """Tells of a base model, as `atelier.diffusion.base_layers.describe_base` describes it."""
        request = pb.RegisterBaseModelRequest(base_model=base_model, request_id=fresh_request_id())
        with translated_errors():
            return self._stub.RegisterBaseModel(request)

    def base_model(self, digest: str) -> pb.BaseModelDescription:
        """One base model, by its digest."""
        name = f"baseModels/{digest.removeprefix('sha256:')}"
        with translated_errors():
            return self._stub.GetBaseModel(pb.GetBaseModelRequest(name=name))

    def base_models(self) -> Iterator[pb.BaseModelDescription]:
        """All base models by name, without their components' layers."""
        return paged(self._stub.ListBaseModels, pb.ListBaseModelsRequest(), "base_models")
