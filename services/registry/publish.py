"""Publishing a version: spec, bytes, checks, S3, and then one transaction that makes it visible.

Until that transaction nothing of the version can be seen. What an upload that failed leaves behind is at most
content in S3 that no version names; its temporary files are removed with it. Only a process that is killed leaves
those too, as `upload-*` in its spool folder: they may be deleted while no registry runs there.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from atelier.errors import InvalidArgumentError
from atelier.pb.registry.v1 import registry_pb2 as pb
from atelier.rpc.names import ADAPTER, VERSION
from atelier.rpc.uploads import data_pieces, receive_files
from atelier.storage.blobs import BlobStore, content_key
from atelier.storage.database import Database
from atelier.storage.requests import earlier_result, remember
from services.registry import adapters, versions
from services.registry.content import check_content
from services.registry.manifest import canonical_manifest, sha256_of
from services.registry.spec import FILES_FIELD, check_version
from services.registry.tables import FileRow, Request, VersionRow, new_etag

MAX_VERSION_BYTES = 64 * 1024**3
"""A whole SDXL model in half precision has 7 GB, a Stable Cascade in float32 27."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PublishConfig:
    """Limits of an upload, and where it waits for its end."""

    spool_folder: Path
    """Uploads are written here, each to a temporary folder of its own."""
    max_version_bytes: int = MAX_VERSION_BYTES

    def __post_init__(self) -> None:
        if self.max_version_bytes <= 0:
            raise ValueError(f"max_version_bytes: is {self.max_version_bytes}; it must be positive")


class Publisher:
    """Receives versions."""

    def __init__(self, config: PublishConfig, database: Database, blobs: BlobStore) -> None:
        self._config = config
        self._database = database
        self._blobs = blobs

    async def publish(self, messages: AsyncIterator[pb.PublishVersionRequest]) -> pb.Version:
        """Serves one PublishVersion call."""
        spec = await _receive_spec(messages)
        version = check_version(spec.version, max_version_bytes=self._config.max_version_bytes)
        earlier = await asyncio.to_thread(self._earlier, spec)
        if earlier is not None:
            return earlier
        manifest = canonical_manifest(version)
        if spec.validate_only:
            version.digest = f"sha256:{sha256_of(manifest)}"
            return version
        with TemporaryDirectory(prefix="upload-", dir=self._config.spool_folder) as folder:
            paths = await receive_files(data_pieces(messages), version.files, Path(folder), field=FILES_FIELD)
            await asyncio.to_thread(self._store, version, paths, manifest)
        return await asyncio.to_thread(self._commit, spec, version, manifest)

    def _earlier(self, spec: pb.PublishVersionSpec) -> pb.Version | None:
        """What this request has published before, if anything. NotFoundError when the adapter is not there."""
        ids = ADAPTER.parse(spec.parent, "spec.parent")
        with self._database.transaction() as session:
            adapters.find(session, **ids)
            name = earlier_result(session, Request, ids["tenant"], spec.request_id, spec)
            return None if name is None else versions.get(session, pb.GetVersionRequest(name=name))

    def _store(self, version: pb.Version, paths: Sequence[Path], manifest: bytes) -> None:
        """Checks every file's content, then puts all in S3."""
        for index, (path, file) in enumerate(zip(paths, version.files, strict=True)):
            check_content(path, file, f"{FILES_FIELD}[{index}]")
        for path, file in zip(paths, version.files, strict=True):
            self._blobs.put_content(path, file.sha256)
        self._blobs.put(content_key(sha256_of(manifest)), manifest)

    def _commit(self, spec: pb.PublishVersionSpec, version: pb.Version, manifest: bytes) -> pb.Version:
        """Makes the version visible under the next number, unless the same request has done so meanwhile."""
        ids = ADAPTER.parse(spec.parent, "spec.parent")
        with self._database.transaction() as session:
            adapter = adapters.find(session, **ids)
            session.refresh(adapter, with_for_update=True)  # concurrent uploads take their numbers in turn
            name = earlier_result(session, Request, ids["tenant"], spec.request_id, spec)
            if name is not None:
                return versions.get(session, pb.GetVersionRequest(name=name))
            adapter.latest_number += 1
            adapter.etag = new_etag()
            row = _new_row(adapter.tenant, adapter.adapter_id, adapter.latest_number, version, sha256_of(manifest))
            session.add(row)
            name = VERSION.format(**ids, version=str(row.number))
            remember(session, Request, ids["tenant"], spec.request_id, spec, name)
            session.flush()
            return versions.to_message(row)


def _new_row(tenant: str, adapter_id: str, number: int, version: pb.Version, sha256: str) -> VersionRow:
    files = sorted(version.files, key=lambda file: file.path)
    return VersionRow(
        tenant=tenant,
        adapter_id=adapter_id,
        number=number,
        digest=f"sha256:{sha256}",
        base_model=version.base_model.model,
        base_model_digest=version.base_model.digest,
        method=version.method,
        instance_prompt=version.instance_prompt,
        metrics=dict(version.metrics),
        source_job=version.source_job,
        files=[FileRow(path=file.path, size_bytes=file.size_bytes, sha256=file.sha256) for file in files],
    )


async def _receive_spec(messages: AsyncIterator[pb.PublishVersionRequest]) -> pb.PublishVersionSpec:
    first = await anext(messages, pb.PublishVersionRequest())
    if first.WhichOneof("content") != "spec":
        raise InvalidArgumentError("spec", "is missing; the first message of an upload carries it")
    return first.spec
