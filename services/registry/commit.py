"""The one transaction that makes a version visible, however its bytes came: published, imported or uploaded in parts.

Before it nothing of the version can be seen, after it everything. What was stored and is in nobody's use afterwards,
because a content was there already or the transaction failed, is deleted here. When the database does not answer,
nobody knows whether it has committed: then all objects stay, and the garbage collection deletes what no row names.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta

from google.protobuf.json_format import MessageToDict
from sqlalchemy.orm import Session

from atelier.errors import DeadlineExceededError, UnavailableError
from atelier.manifest import canonical_manifest, digest_of
from atelier.pb.registry.v1 import registry_pb2 as pb
from atelier.signing import Signer
from atelier.storage.database import Database, utc_now
from atelier.storage.requests import earlier_answer, perform
from services.registry import adapters, base_models, contents, metrics, quota, versions
from services.registry.base_models import KnownBase
from services.registry.quota import Quotas
from services.registry.storing import StoredFile, Storer
from services.registry.tables import (
    AdapterRow,
    FileRow,
    MetricRow,
    Request,
    TriggerWordRow,
    VersionRow,
    new_etag,
)
from services.registry.weights import summarize

PublishRequest = pb.PublishVersionSpec | pb.ImportVersionSpec | pb.CompleteUploadRequest
"""What ends with a new version."""


@dataclass(frozen=True, kw_only=True, slots=True)
class VersionDraft:
    """A version whose bytes are stored, each file checked by itself."""

    version: pb.Version
    """With the fields that the publisher sets, checked (`spec.check_version`)."""
    stored: Sequence[StoredFile]
    """The version's files."""
    base: KnownBase
    files_field: str
    """The request's field that holds the files, as errors name it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Facts:
    """What follows from a draft."""

    manifest: bytes
    signatures: Sequence[pb.Signature]
    weights: Sequence[pb.WeightsSummary]
    lost: Collection[str]
    """Keys under which contents should lie that were there already, but do not: nothing may rely on them."""


def _nothing_else(session: Session) -> None:
    """What a version that was published or imported does beside."""


class Committer:
    """Makes drafts visible.

    Args:
        max_age: of what was stored. Well below the garbage collection's grace period, so that what a version is about
            to name is not collected meanwhile, however long a call or its thread took.
    """

    def __init__(
        self, database: Database, storer: Storer, quotas: Quotas, signer: Signer, *, max_age: timedelta
    ) -> None:
        self._max_age = max_age
        self._database = database
        self._storer = storer
        self._quotas = quotas
        self._signer = signer

    def look_up(
        self, request: PublishRequest, ids: Mapping[str, str], version: pb.Version, *, field: str
    ) -> pb.Version | KnownBase:
        """What this request has published before, or else the base model. Refuses what could not be committed. Blocks.

        Args:
            ids: `tenant` and `adapter`.
            version: with its files, as far as they are known before their bytes are there.
            field: the request's field that holds the version, as errors name it.
        """
        with self._database.transaction(read_only=True) as session:
            earlier = earlier_answer(session, Request, request, pb.Version)
            if earlier is not None:
                return earlier
            adapters.find(session, ids["tenant"], ids["adapter"])
            base = base_models.find(session, version.base_model.digest, f"{field}.base_model.digest")
            self._quotas.check(session, ids["tenant"], version.files)
            return base

    def commit(
        self,
        request: PublishRequest,
        ids: Mapping[str, str],
        draft: VersionDraft,
        *,
        also: Callable[[Session], None] = _nothing_else,
    ) -> pb.Version:
        """Makes a draft visible under the next number of its adapter, unless the same request has done so. Blocks.

        When the draft's weights do not fit its base model, nor each other, that is an InvalidArgumentError.

        Args:
            request: what it was answered is remembered.
            ids: `tenant` and `adapter`.
            also: what else is done in the same transaction, first of all.
        """
        written = pb.Version()

        def write(session: Session) -> pb.Version:
            nonlocal written
            also(session)
            written = self._write(session, ids, draft, facts)
            return written

        try:
            facts = self._facts_of(draft)
            published = perform(self._database, Request, request, pb.Version, write)
        except UnavailableError:
            raise
        except BaseException:
            self._storer.discard(draft.stored)
            raise
        if published is written and not request.validate_only:
            metrics.PUBLISHED_VERSIONS.inc()
        with self._database.transaction(read_only=True) as session:
            unused = contents.unused(session, draft.stored)
        self._storer.discard(unused)
        return published

    def _facts_of(self, draft: VersionDraft) -> _Facts:
        headers = {file.path: file.header for file in draft.stored if file.header is not None}
        manifest = canonical_manifest(draft.version)
        return _Facts(
            manifest=manifest,
            signatures=self._signer.sign(manifest),
            weights=summarize(headers, draft.base, draft.files_field),
            lost=self._lost(draft.stored),
        )

    def _lost(self, stored: Sequence[StoredFile]) -> set[str]:
        with self._database.transaction(read_only=True) as session:
            places = contents.places(session, stored)
        return self._storer.lost(places)

    def _write(self, session: Session, ids: Mapping[str, str], draft: VersionDraft, facts: _Facts) -> pb.Version:
        adapter = adapters.lock(session, ids["tenant"], ids["adapter"])
        owner = quota.lock(session, adapter.tenant)
        self._quotas.check(session, adapter.tenant, draft.stored)
        if utc_now() - min(file.begin_time for file in draft.stored) > self._max_age:
            raise DeadlineExceededError("it took so long that its bytes may be gone; send them again")
        contents.attach(session, owner, draft.stored, facts.lost)
        adapter.last_number += 1
        adapter.latest_number = adapter.last_number
        adapter.etag = new_etag()
        row = _new_row(adapter, draft, facts)
        session.add(row)
        session.flush()
        return versions.to_message(row)


def _new_row(adapter: AdapterRow, draft: VersionDraft, facts: _Facts) -> VersionRow:
    version = draft.version
    return VersionRow(
        tenant=adapter.tenant,
        adapter_id=adapter.adapter_id,
        number=adapter.last_number,
        digest=digest_of(facts.manifest),
        manifest=facts.manifest.decode(),
        signatures=[
            {"key_id": each.key_id, "signature": base64.b64encode(each.signature).decode()} for each in facts.signatures
        ],
        base_model=version.base_model.model,
        base_model_digest=version.base_model.digest,
        family=draft.base.family,
        method=version.method,
        instance_prompt=version.instance_prompt,
        weights=[MessageToDict(each, preserving_proto_field_name=True) for each in facts.weights],
        source_job=version.source_job,
        create_time=utc_now(),
        files=[FileRow(path=file.path, size_bytes=file.size_bytes, sha256=file.sha256) for file in draft.stored],
        metrics=[MetricRow(name=name, value=value) for name, value in version.metrics.items()],
        words=[TriggerWordRow(word=word) for word in version.trigger_words],
    )
