"""Publishing a version out of a client's stream: spec, checks, bytes, more checks, and then `commit`.

Bytes are received only when nothing that the spec says stands against them. Until the commit nothing of the version can
be seen; an upload that fails leaves nothing (`storing`).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from atelier.errors import InvalidArgumentError
from atelier.manifest import canonical_manifest, digest_of
from atelier.pb.registry.v1 import registry_pb2 as pb
from atelier.rpc.names import ADAPTER
from atelier.rpc.uploads import data_pieces
from atelier.storage.database import Database
from atelier.storage.requests import earlier_answer
from services.registry import adapters, base_models
from services.registry.base_models import KnownBase
from services.registry.commit import Committer, VersionDraft
from services.registry.quota import Quotas
from services.registry.spec import check_version
from services.registry.storing import StoredFile, Storer
from services.registry.tables import Request
from services.registry.weights import summarize

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

    def __init__(
        self, config: PublishConfig, database: Database, storer: Storer, quotas: Quotas, committer: Committer
    ) -> None:
        self._config = config
        self._database = database
        self._storer = storer
        self._quotas = quotas
        self._committer = committer

    async def publish(self, messages: AsyncIterator[pb.PublishVersionRequest]) -> pb.Version:
        """Serves one PublishVersion call."""
        spec = await _receive_spec(messages)
        version = check_version(spec.version, VERSION_FIELD, max_version_bytes=self._config.max_version_bytes)
        earlier, base = await asyncio.to_thread(self._look_up, spec, version)
        if earlier is not None:
            return earlier
        assert base is not None, "a request that is new has its base model looked up"
        if spec.validate_only:
            version.digest, version.family = digest_of(canonical_manifest(version)), base.family
            return version
        stored = await self._storer.store_files(data_pieces(messages), version.files, field=FILES_FIELD)
        return await asyncio.to_thread(self._commit, spec, version, base, stored)

    def _look_up(self, spec: pb.PublishVersionSpec, version: pb.Version) -> tuple[pb.Version | None, KnownBase | None]:
        """What this request has published before, or else the base model. Refuses what could not be committed."""
        ids = ADAPTER.parse(spec.parent, "spec.parent")
        with self._database.transaction(read_only=True) as session:
            earlier = earlier_answer(session, Request, spec, pb.Version)
            if earlier is not None:
                return earlier, None
            adapters.find(session, ids["tenant"], ids["adapter"])
            base = base_models.find(session, version.base_model.digest, f"{VERSION_FIELD}.base_model.digest")
            self._quotas.check(session, ids["tenant"], version.files)
            return None, base

    def _commit(
        self, spec: pb.PublishVersionSpec, version: pb.Version, base: KnownBase, stored: Sequence[StoredFile]
    ) -> pb.Version:
        headers = {file.path: file.header for file in stored if file.header is not None}
        try:
            weights = summarize(headers, base, FILES_FIELD)
        except InvalidArgumentError:
            self._storer.discard(stored)
            raise
        draft = VersionDraft(
            version=version,
            manifest=canonical_manifest(version),
            stored=stored,
            family=base.family,
            weights=weights,
        )
        return self._committer.commit(spec, ADAPTER.parse(spec.parent, "spec.parent"), draft)


async def _receive_spec(messages: AsyncIterator[pb.PublishVersionRequest]) -> pb.PublishVersionSpec:
    first = await anext(messages, pb.PublishVersionRequest())
    if first.WhichOneof("content") != "spec":
        raise InvalidArgumentError("spec", "is missing; the first message of an upload carries it")
    return first.spec
