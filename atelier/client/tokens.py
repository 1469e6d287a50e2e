"""Client of the registry's tokens."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from datetime import UTC, datetime, timedelta

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from atelier.client.connection import OWN_TENANT, Connection, paged
from atelier.pb.common.v1.common_pb2 import Scope
from atelier.pb.registry.v1 import tokens_pb2 as pb
from atelier.pb.registry.v1.tokens_pb2_grpc import TokenServiceStub
from atelier.rpc.status import translated_errors


class TokenClient:
    """Bearer tokens of the caller's tenant, which an administrator manages. Tokens are named by their id."""

    def __init__(self, connection: Connection) -> None:
        self._stub = TokenServiceStub(connection.channel)

    def create(
        self, token: str, scopes: Collection[Scope], *, lifetime: timedelta | None = None, description: str = ""
    ) -> pb.CreateTokenResponse:
        """Makes a token; its secret is in the answer and nowhere else.

        A call that ends with UnavailableError may have made it; the next one is then an AlreadyExistsError: rotate it.
        """
        wanted = pb.Token(scopes=scopes, description=description)
        if lifetime is not None:
            expire_time = Timestamp()
            expire_time.FromDatetime(datetime.now(UTC) + lifetime)
            wanted.expire_time.CopyFrom(expire_time)
        request = pb.CreateTokenRequest(parent=OWN_TENANT, token_id=token, token=wanted)
        with translated_errors():
            return self._stub.CreateToken(request)

    def tokens(self) -> Iterator[pb.Token]:
        """All tokens by id, without their secrets."""
        return paged(self._stub.ListTokens, pb.ListTokensRequest(parent=OWN_TENANT), "tokens")

    def rotate(self, token: str, *, overlap: timedelta | None = None) -> pb.CreateTokenResponse:
        """Gives a token a new secret, which is in the answer; the old one works on for a day, or for `overlap`.

        A call that ends with UnavailableError may have done so, as `rotate_time` tells; another one then ends the old
        secret at once.
        """
        request = pb.RotateTokenRequest(name=_name(token))
        if overlap is not None:
            duration = Duration()
            duration.FromTimedelta(overlap)
            request.overlap.CopyFrom(duration)
        with translated_errors():
            return self._stub.RotateToken(request)

    def revoke(self, token: str) -> None:
        """Ends a token."""
        with translated_errors():
            self._stub.RevokeToken(pb.RevokeTokenRequest(name=_name(token)))


def _name(token: str) -> str:
    return f"{OWN_TENANT}/tokens/{token}"
