"""Lists of adapters, versions and moves of aliases: filtered, ordered, a page at a time.

A page costs as much whether few rows pass the filter or many. The database walks through the rows in the wanted order
and takes those that pass, which is quick when many do. Before that it counts what passes each term that an index
answers: when that is little, it takes those rows and sorts them. A filter without such a term, and the last page of an
order by a metric that nearly all versions have, may make it walk through all of the tenant's rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from types import NoneType
from typing import Any

from sqlalchemy import ColumnElement, Select, and_, exists, func, not_, select
from sqlalchemy.orm import Session, aliased, lazyload

from atelier.pb.registry.v1 import registry_pb2 as pb
from atelier.rpc.names import ADAPTER, ALIAS, TENANT, VERSION
from atelier.rpc.pages import Page, parse_page
from atelier.storage.database import UtcDateTime, to_timestamp
from services.registry import adapters, versions
from services.registry.filter_grammar import Node, Term, parse_filter
from services.registry.filters import Fields, NumberField, SetField, TextField, TimeField, compared, necessary_terms
from services.registry.loading import count_items, load_lists
from services.registry.ordering import Found, Order, parse_order
from services.registry.tables import AdapterRow, AliasMoveRow, MetricRow, TagRow, TriggerWordRow, VersionRow

FEW = 2000
"""Rows that are sorted rather than found by a walk in the wanted order."""
MAX_FILES_A_PAGE = 20_000
"""Of its versions together: 5 MiB of an answer that may have 64."""
METRICS = "metrics"
_VERSION_KEY = (VersionRow.tenant, VersionRow.adapter_id, VersionRow.number)
ADAPTER_FIELDS = Fields(
    {
        "name": TextField(AdapterRow.adapter_id, indexed=True),
        "description": TextField(AdapterRow.description),
        "tags": SetField(TagRow.tag, (AdapterRow.tenant, AdapterRow.adapter_id)),
        "create_time": TimeField(AdapterRow.create_time),
    }
)
VERSION_FIELDS = Fields(
    {
        "adapter": TextField(VersionRow.adapter_id, indexed=True),
        "base_model.model": TextField(VersionRow.base_model, indexed=True),
        "base_model.digest": TextField(VersionRow.base_model_digest, indexed=True),
        "method": TextField(VersionRow.method),
        "family": TextField(VersionRow.family),
        "trigger_words": SetField(TriggerWordRow.word, _VERSION_KEY),
        "tags": SetField(TagRow.tag, _VERSION_KEY[:2]),
        "source_job": TextField(VersionRow.source_job, indexed=True),
        "digest": TextField(VersionRow.digest, indexed=True),
        "create_time": TimeField(VersionRow.create_time),
    },
    {METRICS: lambda name: NumberField(MetricRow, _VERSION_KEY, name)},
)
MOVE_FIELDS = Fields(
    {
        "alias": TextField(AliasMoveRow.alias_id),
        "subject": TextField(AliasMoveRow.subject),
        "move_time": TimeField(AliasMoveRow.move_time),
    }
)


def list_adapters(session: Session, request: pb.ListAdaptersRequest) -> pb.ListAdaptersResponse:
    """A page of the tenant's adapters."""
    tenant = TENANT.parse(request.parent, "parent")["tenant"]
    order = parse_order(request.order_by, Order("name", descends=False), ("name", "create_time"))
    tree = parse_filter(request.filter)
    conditions, _ = _passing(session, ADAPTER_FIELDS, tree, AdapterRow, tenant)
    query = select(AdapterRow).options(lazyload("*")).where(*conditions)
    if not request.show_deleted:
        query = query.where(AdapterRow.delete_time.is_(None))
    by_name, by_time = [AdapterRow.adapter_id], [AdapterRow.create_time, AdapterRow.adapter_id]
    columns = by_name if order.field == "name" else by_time
    page = _page(request, tenant, request.order_by, str(request.show_deleted), parts=_kinds(columns))
    found, token = page.cut(order.walk(session, query, columns, page.after, page.size + 1), key=_sort_key)
    rows = [row for _, row in found]
    load_lists(session, rows, "tags")
    return pb.ListAdaptersResponse(adapters=map(adapters.to_message, rows), next_page_token=token)


def list_versions(session: Session, request: pb.ListVersionsRequest) -> pb.ListVersionsResponse:
    """A page of an adapter's versions, or of those of all of the tenant's adapters (AIP-159)."""
    ids = ADAPTER.parse(request.parent, "parent")
    one_adapter = ids["adapter"] != adapters.ALL
    order = parse_order(request.order_by, Order("create_time", descends=True), ("create_time",), METRICS)
    tree = parse_filter(request.filter)
    conditions, are_few = _passing(session, VERSION_FIELDS, tree, VersionRow, ids["tenant"])
    query = select(VersionRow).options(lazyload("*")).where(*conditions)
    if one_adapter:
        adapters.find(session, **ids, deleted=True)
        query = query.where(VersionRow.adapter_id == ids["adapter"])
    if not request.show_deleted:
        query = query.where(VersionRow.delete_time.is_(None), _adapter_is_not_deleted())
    by_time = [VersionRow.number] if one_adapter else [VersionRow.create_time, *_VERSION_KEY[1:]]
    by_metric = [(float, NoneType), *_kinds(_VERSION_KEY[1:])]
    parts = _kinds(by_time) if order.field == "create_time" else by_metric
    page = _page(request, *ids.values(), request.order_by, str(request.show_deleted), parts=parts)
    if order.field == "create_time":
        walked = order.walk(session, query, by_time, page.after, page.size + 1)
    else:
        terms = [term for term in necessary_terms(tree) if term.field == order.field]
        walked = _by_metric(session, query, order, page, terms, are_few=are_few)
    found, token = _with_few_files(session, page, walked).cut(walked, key=_sort_key)
    rows = [row for _, row in found]
    load_lists(session, rows, "files", "metrics", "words")
    return pb.ListVersionsResponse(versions=map(versions.to_message, rows), next_page_token=token)


def list_alias_moves(session: Session, request: pb.ListAliasMovesRequest) -> pb.ListAliasMovesResponse:
    """A page of the moves of an adapter's aliases, the newest first."""
    ids = ADAPTER.parse(request.parent, "parent")
    adapters.find(session, **ids, deleted=True)
    tree = parse_filter(request.filter)
    conditions, _ = _passing(session, MOVE_FIELDS, tree, AliasMoveRow, ids["tenant"])
    query = select(AliasMoveRow).where(*conditions, AliasMoveRow.adapter_id == ids["adapter"])
    columns = [AliasMoveRow.id]
    page = _page(request, *ids.values(), parts=_kinds(columns))
    order = Order("id", descends=True)
    found, token = page.cut(order.walk(session, query, columns, page.after, page.size + 1), key=_sort_key)
    return pb.ListAliasMovesResponse(moves=[_to_message(row) for _, row in found], next_page_token=token)


def _passing(
    session: Session, fields: Fields, tree: Node | None, table: Any, tenant: str
) -> tuple[list[ColumnElement[bool]], bool]:
    """The conditions of being the tenant's and passing the filter; and whether they find few rows by an index."""
    if tree is None:
        return [table.tenant == tenant], False
    condition = fields.condition(tree)
    for limited, lookup in fields.lookups(tree, tenant, FEW + 1):
        first = select(table.tenant).where(limited).limit(FEW + 1).subquery()
        if session.scalars(select(func.count()).select_from(first)).one() <= FEW:
            return [lookup, condition], True
    return [table.tenant == tenant, condition], False


def _by_metric(
    session: Session, query: Select[Any], order: Order, page: Page, terms: Sequence[Term], *, are_few: bool
) -> list[Found]:
    """Versions with the metric by its value, then those without it by their names.

    Args:
        terms: what every version must fulfil of that metric; with any, there are no versions without it.
        are_few: the query finds few rows, which is to come before the search for their metrics.
    """
    metric = aliased(MetricRow)
    own = [getattr(metric, column.key) == column for column in _VERSION_KEY]
    own.append(metric.name == order.field.removeprefix(f"{METRICS}."))
    found: list[Found] = []
    has_it = not page.after or page.after[0] is not None
    if has_it:
        # An outer join, which SQLite does in the order that is written.
        with_it = query.join(metric, and_(*own), isouter=are_few).where(metric.value.is_not(None))
        with_it = with_it.where(*(compared(metric.value, term) for term in terms))
        columns = [metric.value, *_VERSION_KEY[1:]] if are_few else [metric.value, metric.adapter_id, metric.number]
        found = order.walk(session, with_it, columns, page.after, page.size + 1)
    if len(found) <= page.size and not terms:
        without_it = query.where(not_(exists().where(*own)))
        after = () if has_it else page.after[1:]
        rest = order.walk(session, without_it, _VERSION_KEY[1:], after, page.size + 1 - len(found))
        found += [((None, *key), row) for key, row in rest]
    return found


def _with_few_files(session: Session, page: Page, walked: Sequence[Found]) -> Page:
    """The page, cut where its versions' files would be too many for one answer. One version always fits."""
    total = 0
    for size, count in enumerate(count_items(session, [row for _, row in walked[: page.size]], "files")):
        total += count
        if size and total > MAX_FILES_A_PAGE:
            return replace(page, size=size)
    return page


def _page(request: Any, *arguments: str, parts: Any) -> Page:
    kind = type(request).__name__
    return parse_page(request.page_size, request.page_token, kind, request.filter, *arguments, first=(), parts=parts)


def _kinds(columns: Any) -> list[tuple[type, ...]]:
    return [(datetime if isinstance(column.type, UtcDateTime) else column.type.python_type,) for column in columns]


def _sort_key(found: Found) -> tuple[Any, ...]:
    return found[0]


def _adapter_is_not_deleted() -> ColumnElement[bool]:
    return exists().where(
        AdapterRow.tenant == VersionRow.tenant,
        AdapterRow.adapter_id == VersionRow.adapter_id,
        AdapterRow.delete_time.is_(None),
    )


def _to_message(row: AliasMoveRow) -> pb.AliasMove:
    ids = {"tenant": row.tenant, "adapter": row.adapter_id}
    old, new = (
        VERSION.format(**ids, version=str(number)) if number else "" for number in (row.old_number, row.new_number)
    )
    return pb.AliasMove(
        alias=ALIAS.format(**ids, alias=row.alias_id),
        old_version=old,
        new_version=new,
        move_time=to_timestamp(row.move_time),
        subject=row.subject,
    )
