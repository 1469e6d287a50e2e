"""The RPCs of BaseModelService."""

from __future__ import annotations

from grpc.aio import ServicerContext

from atelier.pb.registry.v1 import base_models_pb2 as pb
from atelier.pb.registry.v1.base_models_pb2_grpc import BaseModelServiceServicer
from atelier.storage.database import Database
from atelier.storage.requests import perform
from services.registry import base_models
from services.registry.tables import Request


class BaseModelServicer(BaseModelServiceServicer):
    """BaseModelService over a database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def RegisterBaseModel(
        self, request: pb.RegisterBaseModelRequest, context: ServicerContext
    ) -> pb.BaseModelDescription:
        return perform(
            self._database,
            Request,
            request,
            pb.BaseModelDescription,
            lambda session: base_models.register(session, request),
        )

    def GetBaseModel(self, request: pb.GetBaseModelRequest, context: ServicerContext) -> pb.BaseModelDescription:
        with self._database.transaction(read_only=True) as session:
            return base_models.get(session, request)

    def ListBaseModels(self, request: pb.ListBaseModelsRequest, context: ServicerContext) -> pb.ListBaseModelsResponse:
        with self._database.transaction(read_only=True) as session:
            return base_models.list_page(session, request)
