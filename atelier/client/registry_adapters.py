"""The registry's adapters and aliases; see `registry`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from google.protobuf.field_mask_pb2 import FieldMask

from atelier.client.connection import OWN_TENANT, fresh_request_id, paged
from atelier.pb.registry.v1 import registry_pb2 as pb
from atelier.pb.registry.v1.registry_pb2_grpc import RegistryServiceStub
from atelier.rpc.status import translated_errors


def adapter_name(adapter: str) -> str:
    """Full name of one of the caller's adapters."""
    return f"{OWN_TENANT}/adapters/{adapter}"


def version_name(adapter: str, version: str) -> str:
    """Full name of a version of one of the caller's adapters, by its number."""
    return f"{adapter_name(adapter)}/versions/{version}"


def alias_name(adapter: str, alias: str) -> str:
    """Full name of an alias of one of the caller's adapters."""
    return f"{adapter_name(adapter)}/aliases/{alias}"


class AdapterMethods:
    """Part of RegistryClient."""

    _stub: RegistryServiceStub

    def create_adapter(self, adapter: str, *, description: str = "", tags: Sequence[str] = ()) -> pb.Adapter:
        """Creates an adapter without versions."""
        request = pb.CreateAdapterRequest(
            parent=OWN_TENANT,
            adapter_id=adapter,
            adapter=pb.Adapter(description=description, tags=tags),
            request_id=fresh_request_id(),
        )
        with translated_errors():
            return self._stub.CreateAdapter(request)

    def adapter(self, adapter: str) -> pb.Adapter:
        """One adapter; a deleted one too."""
        with translated_errors():
            return self._stub.GetAdapter(pb.GetAdapterRequest(name=adapter_name(adapter)))

    def adapters(self, *, filter: str = "", order_by: str = "", show_deleted: bool = False) -> Iterator[pb.Adapter]:
        """The adapters that pass the filter (docs/registry.md), by name unless ordered otherwise."""
        request = pb.ListAdaptersRequest(parent=OWN_TENANT, filter=filter, order_by=order_by, show_deleted=show_deleted)
        return paged(self._stub.ListAdapters, request, "adapters")

    def update_adapter(self, adapter: pb.Adapter, fields: Sequence[str]) -> pb.Adapter:
        """Writes these fields of an adapter: `description`, `tags`, `retention`.

        As it was read, with its etag, it is written only if nobody has changed it since.
        """
        request = pb.UpdateAdapterRequest(
            adapter=adapter, update_mask=FieldMask(paths=fields), request_id=fresh_request_id()
        )
        with translated_errors():
            return self._stub.UpdateAdapter(request)

    def delete_adapter(self, adapter: str, *, force: bool = False, etag: str = "") -> pb.Adapter:
        """Deletes an adapter; with `force` one that has versions, too."""
        request = pb.DeleteAdapterRequest(
            name=adapter_name(adapter), force=force, etag=etag, request_id=fresh_request_id()
        )
        with translated_errors():
            return self._stub.DeleteAdapter(request)

    def undelete_adapter(self, adapter: str) -> pb.Adapter:
        """Brings a deleted adapter back."""
        request = pb.UndeleteAdapterRequest(name=adapter_name(adapter), request_id=fresh_request_id())
        with translated_errors():
            return self._stub.UndeleteAdapter(request)

    def purge_deleted(self, adapter: str | None = None, *, dry_run: bool = False) -> pb.PurgeDeletedResponse:
        """Removes for good what is deleted, of one adapter or of all; a dry run tells what that would be.

        Of very many things some may be left: call it until it answers nothing.
        """
        parent = OWN_TENANT if adapter is None else adapter_name(adapter)
        request = pb.PurgeDeletedRequest(parent=parent, validate_only=dry_run, request_id=fresh_request_id())
        with translated_errors():
            return self._stub.PurgeDeleted(request)

    def apply_retention(
        self, adapter: str = "-", policy: pb.RetentionPolicy | None = None, *, dry_run: bool = False
    ) -> list[str]:
        """Deletes the versions that a policy does not keep, and returns their names; a dry run only does the latter.

        Args:
            adapter: `-` for all that have a policy.
            policy: None for each adapter's own.
        """
        request = pb.ApplyRetentionRequest(
            parent=adapter_name(adapter), policy=policy, validate_only=dry_run, request_id=fresh_request_id()
        )
        with translated_errors():
            return list(self._stub.ApplyRetention(request).versions)

    def set_alias(self, adapter: str, alias: str, version: str, *, etag: str = "") -> pb.Alias:
        """Points an alias at a version number, creating it when needed; with `etag`, only from that state."""
        wanted = pb.Alias(name=alias_name(adapter, alias), version=version_name(adapter, version), etag=etag)
        request = pb.UpdateAliasRequest(alias=wanted, allow_missing=not etag, request_id=fresh_request_id())
        with translated_errors():
            return self._stub.UpdateAlias(request)

    def delete_alias(self, adapter: str, alias: str, *, etag: str = "") -> None:
        """Deletes an alias; with `etag`, only from that state."""
        request = pb.DeleteAliasRequest(name=alias_name(adapter, alias), etag=etag, request_id=fresh_request_id())
        with translated_errors():
            self._stub.DeleteAlias(request)

    def aliases(self, adapter: str) -> Iterator[pb.Alias]:
        """All aliases of an adapter, by name."""
        return paged(self._stub.ListAliases, pb.ListAliasesRequest(parent=adapter_name(adapter)), "aliases")

    def alias_moves(self, adapter: str, *, filter: str = "") -> Iterator[pb.AliasMove]:
        """Where an adapter's aliases have pointed, the newest move first."""
        request = pb.ListAliasMovesRequest(parent=adapter_name(adapter), filter=filter)
        return paged(self._stub.ListAliasMoves, request, "moves")
