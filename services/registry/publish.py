"""Publishing a version out of a client's stream: spec, checks, bytes, more checks, and then `commit`.

Bytes are received only when nothing that the spec says stands against them. Until the commit nothing of the version can
be seen; an upload that fails leaves nothing (`storing`).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

from atelier.manifest import canonical_manifest, digest_of
from atelier.pb.registry.v1 import registry_pb2 as pb
from atelier.rpc.names import ADAPTER
from atelier.rpc.uploads import data_pieces, first_spec
from services.registry.commit import Committer, VersionDraft
from services.registry.spec import check_version
from services.registry.storing import Storer

VERSION_FIELD = "spec.version"
FILES_FIELD = f"{VERSION_FIELD}.files"
MAX_VERSION_BYTES = 64 * 1024**3
"""A whole SDXL model in half precision has 7 GB, a Stable Cascade in float32 27."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PublishConfig:
    """Limits of a version, however its bytes come."""

    max_version_bytes: int = MAX_VERSION_BYTES

    def __post_init__(self) -> None:
        if self.max_version_bytes <= 0:
            raise ValueError(f"max_version_bytes: is {self.max_version_bytes}; it must be positive")


class Publisher:
    """Receives versions."""

    def __init__(self, config: PublishConfig, storer: Storer, committer: Committer) -> None:
        self._config = config
        self._storer = storer
        self._committer = committer

    async def publish(self, messages: AsyncIterator[pb.PublishVersionRequest]) -> pb.Version:
        """Serves one PublishVersion call."""
        spec: pb.PublishVersionSpec = await first_spec(messages, "an upload")
        version = check_version(spec.version, VERSION_FIELD, max_version_bytes=self._config.max_version_bytes)
        ids = ADAPTER.parse(spec.parent, "spec.parent")
        found = await asyncio.to_thread(self._committer.look_up, spec, ids, version, field=VERSION_FIELD)
        if isinstance(found, pb.Version):
            return found
        if spec.validate_only:
            version.digest, version.family = digest_of(canonical_manifest(version)), found.family
            return version
        stored = await self._storer.store_files(data_pieces(messages), version.files, field=FILES_FIELD)
        draft = VersionDraft(version=version, stored=stored, base=found, files_field=FILES_FIELD)
        return await asyncio.to_thread(self._committer.commit, spec, ids, draft)
