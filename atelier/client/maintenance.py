"""Client of the registry's maintenance, for operators."""

from __future__ import annotations

from collections.abc import Iterator

from atelier.client.connection import LONG_CALL_SECONDS, Connection, fresh_request_id
from atelier.pb.registry.v1 import maintenance_pb2 as pb
from atelier.pb.registry.v1.maintenance_pb2_grpc import MaintenanceServiceStub
from atelier.rpc.status import translated_errors


class MaintenanceClient:
    """What keeps the whole installation's store in order. Takes a credential of an operator."""

    def __init__(self, connection: Connection) -> None:
        self._stub = MaintenanceServiceStub(connection.channel)

    def collect_garbage(self, *, validate_only: bool = False) -> pb.CollectGarbageResponse:
        """Removes what nobody has any more; with `validate_only` counts what would go."""
        request = pb.CollectGarbageRequest(validate_only=validate_only)
        with translated_errors():
            return self._stub.CollectGarbage(request, timeout=LONG_CALL_SECONDS)

    def scrub(self, *, limit_bytes: int = 0) -> Iterator[pb.ScrubResponse]:
        """Has stored contents read again, at most `limit_bytes` unless 0; tells of progress and of what is wrong."""
        with translated_errors():
            yield from self._stub.Scrub(pb.ScrubRequest(limit_bytes=limit_bytes))

    def quota(self, tenant: str) -> pb.Quota:
        """What a tenant may store."""
        with translated_errors():
            return self._stub.GetQuota(pb.GetQuotaRequest(name=f"quotas/{tenant}"))

    def set_quota(self, tenant: str, *, max_stored_bytes: int, max_versions: int) -> pb.Quota:
        """Sets what a tenant may store; 0 means no limit."""
        quota = pb.Quota(name=f"quotas/{tenant}", max_stored_bytes=max_stored_bytes, max_versions=max_versions)
        with translated_errors():
            return self._stub.UpdateQuota(pb.UpdateQuotaRequest(quota=quota, request_id=fresh_request_id()))
