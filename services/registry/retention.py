"""Applying retention policies: deleting versions that they do not keep, for good only after the usual grace.

A version that is undeleted while the policy does not keep it is deleted again when the policy is next applied: point an
alias at it, or change the policy. `policies` says what is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, or_, select, tuple_, update
from sqlalchemy.orm import Session

from atelier.errors import FailedPreconditionError, InvalidArgumentError, NotFoundError
from atelier.pb.registry.v1 import registry_pb2 as pb
from atelier.rpc.names import ADAPTER, VERSION
from atelier.storage.database import Database, utc_now
from services.registry import adapters, policies
from services.registry.adapters import within
from services.registry.policies import Policy
from services.registry.tables import AdapterRow, AliasRow, VersionRow

MAX_DELETED = 1000
"""Versions in one ApplyRetention call, or one transaction of `apply_due`."""
_ADAPTERS_A_PAGE = 200


def apply(session: Session, request: pb.ApplyRetentionRequest, *, grace: timedelta) -> pb.ApplyRetentionResponse:
    """Deletes what a policy does not keep, the oldest versions first; at most MAX_DELETED a call."""
    ids = ADAPTER.parse(request.parent, "parent")
    given = policies.parse(request.policy, "policy") if request.HasField("policy") else None
    if ids["adapter"] != adapters.ALL:
        rows: Sequence[AdapterRow] = [adapters.lock(session, *ids.values())]
    elif given is None:
        rows = _lock_all(session, ids["tenant"])
    else:
        raise InvalidArgumentError("policy", "is for one adapter; with adapters/- each adapter's own is applied")
    response = pb.ApplyRetentionResponse()
    for row in rows:
        limit = MAX_DELETED - len(response.versions)
        response.versions.extend(_apply(session, row, given or policies.of(row), utc_now(), grace, limit))
    return response


def apply_due(database: Database, *, grace: timedelta) -> int:
    """Applies every adapter's own policy, each in a transaction of its own; returns how many versions it deleted."""
    count = 0
    after = ("", "")
    while True:
        with database.transaction(read_only=True) as session:
            page = _page_with_policy(session, after)
            due = [row for row in page if _not_kept(session, row, policies.of(row), utc_now())]
        for row in due:
            count += _apply_own(database, row, grace)
        if len(page) < _ADAPTERS_A_PAGE:
            return count
        after = (page[-1].tenant, page[-1].adapter_id)


def _apply_own(database: Database, adapter: AdapterRow, grace: timedelta) -> int:
    try:
        with database.transaction() as session:
            row = adapters.lock(session, adapter.tenant, adapter.adapter_id)
            return len(_apply(session, row, policies.of(row), utc_now(), grace, MAX_DELETED))
    except (NotFoundError, FailedPreconditionError):  # deleted meanwhile
        return 0


def _apply(
    session: Session, adapter: AdapterRow, policy: Policy, now: datetime, grace: timedelta, limit: int
) -> list[str]:
    """Applies a policy to a locked adapter; the names of the versions it deleted."""
    numbers = _not_kept(session, adapter, policy, now)[:limit]
    doomed = (*within(VersionRow, adapter), VersionRow.number.in_(numbers))
    session.execute(update(VersionRow).where(*doomed).values(delete_time=now, purge_time=now + grace))
    ids = {"tenant": adapter.tenant, "adapter": adapter.adapter_id}
    return [VERSION.format(**ids, version=str(number)) for number in numbers]


def _not_kept(session: Session, adapter: AdapterRow, policy: Policy, now: datetime) -> Sequence[int]:
    if policy.keeps_all:
        return []
    visible = (*within(VersionRow, adapter), VersionRow.delete_time.is_(None))
    query = select(VersionRow.number, VersionRow.create_time).where(*visible).order_by(VersionRow.number.desc())
    aliased = set(session.scalars(select(AliasRow.number).where(*within(AliasRow, adapter))))
    return policy.not_kept(session.execute(query).tuples().all(), aliased, now)


def _lock_all(session: Session, tenant: str) -> Sequence[AdapterRow]:
    """The tenant's adapters with a policy, locked in the order of their ids as everybody does who locks several."""
    query = select(AdapterRow).where(AdapterRow.tenant == tenant, _has_policy()).order_by(AdapterRow.adapter_id)
    return session.scalars(query.with_for_update().execution_options(populate_existing=True)).all()


def _page_with_policy(session: Session, after: tuple[str, str]) -> Sequence[AdapterRow]:
    key = (AdapterRow.tenant, AdapterRow.adapter_id)
    query = select(AdapterRow).where(_has_policy(), tuple_(*key) > tuple_(*after)).order_by(*key)
    return session.scalars(query.limit(_ADAPTERS_A_PAGE)).all()


def _has_policy() -> ColumnElement[bool]:
    has_policy = or_(AdapterRow.keep_last > 0, AdapterRow.keep_younger_than.is_not(None))
    return AdapterRow.delete_time.is_(None) & has_policy
