"""Client of the registry.

`registry_adapters` has what is said of adapters and aliases, `registry_uploads` what goes in, `registry_downloads` what
comes out.
"""

from __future__ import annotations

from collections.abc import Iterator

from atelier.client.connection import OWN_TENANT, Connection, fresh_request_id, paged
from atelier.client.registry_adapters import AdapterMethods, adapter_name, version_name
from atelier.client.registry_downloads import DownloadMethods
from atelier.client.registry_uploads import UploadMethods
from atelier.pb.registry.v1 import registry_pb2 as pb
from atelier.pb.registry.v1.registry_pb2_grpc import RegistryServiceStub
from atelier.rpc.status import translated_errors


class RegistryClient(AdapterMethods, UploadMethods, DownloadMethods):
    """Adapters, versions and aliases of the caller's tenant. Adapters are named by their id, such as `fox`."""

    def __init__(self, connection: Connection) -> None:
        self._stub = RegistryServiceStub(connection.channel)

    def tenant(self) -> pb.Tenant:
        """The caller's tenant, what it stores and may store."""
        with translated_errors():
            return self._stub.GetTenant(pb.GetTenantRequest(name=OWN_TENANT))

    def version(self, adapter: str, version: str) -> pb.Version:
        """One version by its number; a deleted one too."""
        with translated_errors():
            return self._stub.GetVersion(pb.GetVersionRequest(name=version_name(adapter, version)))

    def versions(
        self, adapter: str = "-", *, filter: str = "", order_by: str = "", show_deleted: bool = False
    ) -> Iterator[pb.Version]:
        """The versions of an adapter, or of all for `-`, that pass the filter (docs/registry.md), newest first unless
        ordered otherwise."""
        request = pb.ListVersionsRequest(
            parent=adapter_name(adapter), filter=filter, order_by=order_by, show_deleted=show_deleted
        )
        return paged(self._stub.ListVersions, request, "versions")

    def resolve(self, reference: str, *, timeout_seconds: float | None = None) -> pb.Version:
        """The version that `NAME`, `NAME@ALIAS` or `NAME@VERSION` means now."""
        adapter, _, selector = reference.partition("@")
        request = pb.ResolveVersionRequest(adapter=adapter_name(adapter), reference=selector)
        with translated_errors():
            return self._stub.ResolveVersion(request, timeout=timeout_seconds)

    def delete_version(self, adapter: str, version: str) -> pb.Version:
        """Deletes a version, by its number."""
        request = pb.DeleteVersionRequest(name=version_name(adapter, version), request_id=fresh_request_id())
        with translated_errors():
            return self._stub.DeleteVersion(request)

    def undelete_version(self, adapter: str, version: str) -> pb.Version:
        """Brings a deleted version back."""
        request = pb.UndeleteVersionRequest(name=version_name(adapter, version), request_id=fresh_request_id())
        with translated_errors():
            return self._stub.UndeleteVersion(request)
