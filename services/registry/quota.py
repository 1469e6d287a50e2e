"""What a tenant stores and may store. Each distinct content counts once, and versions until they are purged.

Limits are checked before bytes are received, and again, under the lock of the tenant's row, when a version is
committed: tenants cannot get past them by uploading several versions at once. Whoever begins an upload that may go on
for long passes in what the tenant's others will bring (`pending_bytes`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from atelier.errors import InvalidArgumentError, ResourceExhaustedError
from atelier.pb.common.v1.common_pb2 import File
from atelier.pb.registry.v1 import maintenance_pb2, registry_pb2
from atelier.rpc.names import ID_PATTERN, TENANT, shown
from services.registry.content_tables import TenantBlobRow, TenantRow
from services.registry.storing import StoredFile
from services.registry.tables import AdapterRow

_NAME = re.compile(rf"quotas/({ID_PATTERN.pattern})")


@dataclass(frozen=True, kw_only=True, slots=True)
class QuotaConfig:
    """What a tenant may store unless it was told otherwise; 0 means no limit."""

    max_tenant_bytes: int = 0
    max_tenant_versions: int = 0

    def __post_init__(self) -> None:
        for name in ("max_tenant_bytes", "max_tenant_versions"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: is {getattr(self, name)}; it must be 0 (no limit) or more")


def lock(session: Session, tenant: str) -> TenantRow:
    """The tenant's row, locked and as it is now; made when it is not there."""
    query = select(TenantRow).where(TenantRow.tenant == tenant).with_for_update()
    row = session.scalar(query.execution_options(populate_existing=True))
    if row is None:
        row = _empty(tenant)
        session.add(row)
        session.flush()
    return row


class Quotas:
    """The limits of all tenants."""

    def __init__(self, config: QuotaConfig) -> None:
        self._config = config

    def check(
        self, session: Session, tenant: str, files: Sequence[File | StoredFile], *, pending_bytes: int = 0
    ) -> None:
        """ResourceExhaustedError unless the tenant may store another version, of these files.

        Args:
            pending_bytes: are counted as if they were stored.
        """
        row = session.get(TenantRow, tenant) or _empty(tenant)
        limits = self._limits(row)
        if limits.max_versions and row.version_count >= limits.max_versions:
            raise _exceeded("versions", limits.max_versions, row.version_count, 1)
        if limits.max_stored_bytes:
            new_bytes = _new_bytes(session, tenant, files)
            used_bytes = row.stored_bytes + pending_bytes
            if used_bytes + new_bytes > limits.max_stored_bytes:
                raise _exceeded("bytes", limits.max_stored_bytes, used_bytes, new_bytes)

    def get_tenant(self, session: Session, request: registry_pb2.GetTenantRequest) -> registry_pb2.Tenant:
        """The caller's tenant. Deleted adapters are not counted."""
        tenant = TENANT.parse(request.name, "name")["tenant"]
        row = session.get(TenantRow, tenant) or _empty(tenant)
        limits = self._limits(row)
        adapters = select(func.count()).where(AdapterRow.tenant == tenant, AdapterRow.delete_time.is_(None))
        return registry_pb2.Tenant(
            name=TENANT.format(),
            adapter_count=session.scalar(adapters),
            stored_bytes=row.stored_bytes,
            version_count=row.version_count,
            max_stored_bytes=limits.max_stored_bytes,
            max_versions=limits.max_versions,
        )

    def get(self, session: Session, request: maintenance_pb2.GetQuotaRequest) -> maintenance_pb2.Quota:
        """What a tenant may store, whether or not it ever stored anything."""
        tenant = _parse(request.name, "name")
        return self._limits(session.get(TenantRow, tenant) or _empty(tenant))

    def update(self, session: Session, request: maintenance_pb2.UpdateQuotaRequest) -> maintenance_pb2.Quota:
        """Sets what a tenant may store from now on. What it has beyond that stays."""
        tenant = _parse(request.quota.name, "quota.name")
        for field in ("max_stored_bytes", "max_versions"):
            if getattr(request.quota, field) < 0:
                raise InvalidArgumentError(f"quota.{field}", "is negative; 0 (no limit) or more are allowed")
        row = lock(session, tenant)
        row.max_stored_bytes, row.max_versions = request.quota.max_stored_bytes, request.quota.max_versions
        return self._limits(row)

    def _limits(self, row: TenantRow) -> maintenance_pb2.Quota:
        max_bytes, max_versions = row.max_stored_bytes, row.max_versions
        return maintenance_pb2.Quota(
            name=f"quotas/{row.tenant}",
            max_stored_bytes=self._config.max_tenant_bytes if max_bytes is None else max_bytes,
            max_versions=self._config.max_tenant_versions if max_versions is None else max_versions,
        )


def _empty(tenant: str) -> TenantRow:
    return TenantRow(tenant=tenant, stored_bytes=0, version_count=0)


def _new_bytes(session: Session, tenant: str, files: Sequence[File | StoredFile]) -> int:
    """Bytes of the distinct contents that the tenant has not."""
    sizes = {file.sha256: file.size_bytes for file in files}
    own = select(TenantBlobRow.sha256).where(TenantBlobRow.tenant == tenant, TenantBlobRow.sha256.in_(sizes))
    return sum(sizes.values()) - sum(sizes[sha256] for sha256 in session.scalars(own))


def _exceeded(what: str, limit: int, used: int, wanted: int) -> ResourceExhaustedError:
    return ResourceExhaustedError(
        f"the tenant has {used} of at most {limit} {what} and needs {wanted} more; delete and purge, end open uploads, "
        "or ask for more",
        reason="QUOTA_EXCEEDED",
        metadata={"quota": what, "limit": str(limit), "used": str(used), "wanted": str(wanted)},
    )


def _parse(name: str, field: str) -> str:
    match = _NAME.fullmatch(name)
    if match is None:
        raise InvalidArgumentError(field, f"is {shown(name)}; it must have the form quotas/{{tenant}}")
    return match[1]
