"""The one transaction that makes a version visible, however its bytes came: published, imported or uploaded in parts.

Before it nothing of the version can be seen, after it everything. What was stored and is in nobody's use afterwards,
because a content was there already or the transaction failed, is deleted here. When the database does not answer,
nobody knows whether it has committed: then all objects stay, and the garbage collection deletes what no row names.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from sqlalchemy.orm import Session

from atelier.errors import DeadlineExceededError, UnavailableError
from atelier.manifest import digest_of
from atelier.pb.registry.v1 import registry_pb2 as pb
from atelier.signing import Signer
from atelier.storage.database import Database, utc_now
from atelier.storage.requests import perform
from services.registry import adapters, contents, metrics, quota, versions
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


@dataclass(frozen=True, kw_only=True, slots=True)
class VersionDraft:
    """A version whose bytes are stored and checked."""

    version: pb.Version
    """With the fields that the publisher sets, checked (`spec.check_version`)."""
    manifest: bytes
    stored: Sequence[StoredFile]
    """The version's files."""
    family: str
    """Of its base model."""
    weights: Sequence[pb.WeightsSummary]


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

    def commit(
        self,
        request: Message,
        ids: Mapping[str, str],
        draft: VersionDraft,
        *,
        also: Callable[[Session], None] = _nothing_else,
    ) -> pb.Version:
        """Makes a draft visible under the next number of its adapter, unless the same request has done so. Blocks.

        Args:
            request: has `request_id` and `validate_only`; what it was answered is remembered.
            ids: `tenant` and `adapter`.
            also: what else is done in the same transaction, first of all.
        """
        signatures = self._signer.sign(draft.manifest)

        def write(session: Session) -> pb.Version:
            also(session)
            return self._write(session, ids, draft, signatures)

        try:
            published = perform(self._database, Request, request, pb.Version, write)
        except UnavailableError:
            raise
        except BaseException:
            self._storer.discard(draft.stored)
            raise
        with self._database.transaction(read_only=True) as session:
            unused = contents.unused(session, draft.stored)
        self._storer.discard(unused)
        return published

    def _write(
        self, session: Session, ids: Mapping[str, str], draft: VersionDraft, signatures: Sequence[pb.Signature]
    ) -> pb.Version:
        adapter = adapters.lock(session, ids["tenant"], ids["adapter"])
        owner = quota.lock(session, adapter.tenant)
        self._quotas.check(session, adapter.tenant, draft.stored)
        if utc_now() - min(file.begin_time for file in draft.stored) > self._max_age:
            raise DeadlineExceededError("it took so long that its bytes may be gone; send them again")
        contents.attach(session, owner, draft.stored)
        adapter.last_number += 1
        adapter.latest_number = adapter.last_number
        adapter.etag = new_etag()
        row = _new_row(adapter, draft, signatures)
        session.add(row)
        session.flush()
        metrics.PUBLISHED_VERSIONS.inc()
        return versions.to_message(row)


def _new_row(adapter: AdapterRow, draft: VersionDraft, signatures: Sequence[pb.Signature]) -> VersionRow:
    version = draft.version
    return VersionRow(
        tenant=adapter.tenant,
        adapter_id=adapter.adapter_id,
        number=adapter.last_number,
        digest=digest_of(draft.manifest),
        manifest=draft.manifest.decode(),
        signatures=[
            {"key_id": each.key_id, "signature": base64.b64encode(each.signature).decode()} for each in signatures
        ],
        base_model=version.base_model.model,
        base_model_digest=version.base_model.digest,
        family=draft.family,
        method=version.method,
        instance_prompt=version.instance_prompt,
        weights=[MessageToDict(each, preserving_proto_field_name=True) for each in draft.weights],
        source_job=version.source_job,
        create_time=utc_now(),
        files=[FileRow(path=file.path, size_bytes=file.size_bytes, sha256=file.sha256) for file in draft.stored],
        metrics=[MetricRow(name=name, value=value) for name, value in version.metrics.items()],
        words=[TriggerWordRow(word=word) for word in version.trigger_words],
    )
