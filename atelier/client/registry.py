"""Client of the registry."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from atelier.client.connection import OWN_TENANT, Connection, paged
from atelier.errors import DataLossError, NotFoundError
from atelier.pb.common.v1.common_pb2 import File
from atelier.pb.registry.v1 import registry_pb2 as pb
from atelier.pb.registry.v1.registry_pb2_grpc import RegistryServiceStub
from atelier.rpc.status import translated_errors
from atelier.rpc.uploads import pieces_of


def adapter_name(adapter: str) -> str:
    """Full name of one of the caller's adapters."""
    return f"{OWN_TENANT}/adapters/{adapter}"


class RegistryClient:
    """Adapters, versions and aliases of the caller's tenant. Adapters are named by their id, such as `fox`."""

    def __init__(self, connection: Connection) -> None:
        self._stub = RegistryServiceStub(connection.channel)

    def tenant(self) -> pb.Tenant:
        """The caller's tenant and what it stores."""
        with translated_errors():
            return self._stub.GetTenant(pb.GetTenantRequest(name=OWN_TENANT))

    def create_adapter(self, adapter: str, *, description: str = "") -> pb.Adapter:
        """Creates an adapter without versions."""
        request = pb.CreateAdapterRequest(
            parent=OWN_TENANT,
            adapter_id=adapter,
            adapter=pb.Adapter(description=description),
            request_id=str(uuid.uuid4()),
        )
        with translated_errors():
            return self._stub.CreateAdapter(request)

    def adapter(self, adapter: str) -> pb.Adapter:
        """One adapter."""
        with translated_errors():
            return self._stub.GetAdapter(pb.GetAdapterRequest(name=adapter_name(adapter)))

    def adapters(self) -> Iterator[pb.Adapter]:
        """All adapters, by name."""
        return paged(self._stub.ListAdapters, pb.ListAdaptersRequest(parent=OWN_TENANT), "adapters")

    def publish(
        self, adapter: str, version: pb.Version, contents: Mapping[str, bytes | Path], *, request_id: str | None = None
    ) -> pb.Version:
        """Publishes a version made of `contents`, bytes or files by path; `version` brings everything else."""
        paths = sorted(contents)
        spec = pb.PublishVersionSpec(
            parent=adapter_name(adapter), version=version, request_id=request_id or str(uuid.uuid4())
        )
        del spec.version.files[:]
        spec.version.files.extend(_describe(path, contents[path]) for path in paths)

        def messages() -> Iterator[pb.PublishVersionRequest]:
            yield pb.PublishVersionRequest(spec=spec)
            for piece in pieces_of([contents[path] for path in paths]):
                yield pb.PublishVersionRequest(data=piece)

        with translated_errors():
            return self._stub.PublishVersion(messages())

    def versions(self, adapter: str, *, filter: str = "") -> Iterator[pb.Version]:
        """The versions of an adapter, newest first; all, or those that a filter such as `method = "lora"` lets pass."""
        request = pb.ListVersionsRequest(parent=adapter_name(adapter), filter=filter)
        return paged(self._stub.ListVersions, request, "versions")

    def resolve(self, reference: str, *, timeout_seconds: float | None = None) -> pb.Version:
        """The version that `NAME`, `NAME@ALIAS` or `NAME@VERSION` means now."""
        adapter, _, selector = reference.partition("@")
        request = pb.ResolveVersionRequest(adapter=adapter_name(adapter), reference=selector)
        with translated_errors():
            return self._stub.ResolveVersion(request, timeout=timeout_seconds)

    def download(self, version: pb.Version, path: str, *, timeout_seconds: float | None = None) -> bytes:
        """The bytes of one file of a version, checked against its SHA-256; all of them within `timeout_seconds`."""
        return b"".join(self._pieces(version, path, timeout_seconds))

    def _pieces(self, version: pb.Version, path: str, timeout_seconds: float | None = None) -> Iterator[bytes]:
        """The same in pieces; DataLossError after the last one when they are not what was published."""
        file = next((file for file in version.files if file.path == path), None)
        if file is None:
            raise NotFoundError(f"{version.name} has no file {path}", reason="FILE_NOT_FOUND")
        request, digest = pb.DownloadFileRequest(version=version.name, path=path), hashlib.sha256()
        with translated_errors():
            for response in self._stub.DownloadFile(request, timeout=timeout_seconds):
                digest.update(response.data)
                yield response.data
        if digest.hexdigest() != file.sha256:
            raise DataLossError(f"{version.name}: {path} did not arrive with the SHA-256 {file.sha256}")

    def pull(
        self, version: pb.Version, folder: Path, *, on_received: Callable[[int], None] = lambda size_bytes: None
    ) -> list[Path]:
        """Writes all files of a version below `folder`, which plain diffusers then loads.

        A file has its name once it is there whole. `on_received(size_bytes)` hears of each piece.
        """
        written = []
        for file in version.files:
            target = folder / file.path
            target.parent.mkdir(parents=True, exist_ok=True)
            part = target.with_name(f"{target.name}.part")
            with part.open("wb") as stream:
                for piece in self._pieces(version, file.path):
                    stream.write(piece)
                    on_received(len(piece))
            written.append(part.replace(target))
        return written

    def set_alias(self, adapter: str, alias: str, version: str, *, etag: str = "") -> pb.Alias:
        """Points an alias at a version number, creating it when needed; with `etag`, only from that state."""
        name = adapter_name(adapter)
        wanted = pb.Alias(name=f"{name}/aliases/{alias}", version=f"{name}/versions/{version}", etag=etag)
        with translated_errors():
            return self._stub.UpdateAlias(pb.UpdateAliasRequest(alias=wanted, allow_missing=not etag))

    def aliases(self, adapter: str) -> Iterator[pb.Alias]:
        """All aliases of an adapter, by name."""
        return paged(self._stub.ListAliases, pb.ListAliasesRequest(parent=adapter_name(adapter)), "aliases")


def _describe(path: str, content: bytes | Path) -> File:
    if isinstance(content, bytes):
        return File(path=path, size_bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
    with content.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return File(path=path, size_bytes=content.stat().st_size, sha256=sha256)
