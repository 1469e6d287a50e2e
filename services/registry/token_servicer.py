"""The RPCs of TokenService. Handlers are plain functions; they run in threads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message
from grpc.aio import ServicerContext
from sqlalchemy.orm import Session

from atelier.pb.registry.v1 import tokens_pb2 as pb
from atelier.pb.registry.v1.tokens_pb2_grpc import TokenServiceServicer
from atelier.storage.database import Database
from services.registry import tokens

Answer = TypeVar("Answer", bound=Message)


class TokenServicer(TokenServiceServicer):
    """TokenService over a database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def CreateToken(self, request: pb.CreateTokenRequest, context: ServicerContext) -> pb.CreateTokenResponse:
        return self._give_secret(tokens.create, request)

    def ListTokens(self, request: pb.ListTokensRequest, context: ServicerContext) -> pb.ListTokensResponse:
        with self._database.transaction(read_only=True) as session:
            return tokens.list_page(session, request)

    def RotateToken(self, request: pb.RotateTokenRequest, context: ServicerContext) -> pb.CreateTokenResponse:
        return self._give_secret(tokens.rotate, request)

    def RevokeToken(self, request: pb.RevokeTokenRequest, context: ServicerContext) -> Empty:
        return self._write(tokens.revoke, request)

    def VerifyToken(self, request: pb.VerifyTokenRequest, context: ServicerContext) -> pb.VerifyTokenResponse:
        with self._database.transaction(read_only=True) as session:
            return tokens.verify(session, request.secret)

    def _give_secret(
        self, work: Callable[[Session, Any], pb.CreateTokenResponse], request: Any
    ) -> pb.CreateTokenResponse:
        answer = self._write(work, request)
        if request.validate_only:
            answer.ClearField("secret")
        return answer

    def _write(self, work: Callable[[Session, Any], Answer], request: Any) -> Answer:
        """Not `atelier.storage.requests.perform`, which keeps answers: these hold secrets."""
        with self._database.transaction() as session:
            answer = work(session, request)
            session.flush()
            if request.validate_only:
                session.rollback()
        return answer
