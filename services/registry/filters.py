"""Filters as SQL conditions. Values are bound parameters, and text means the same on SQLite and on PostgreSQL.

A field has a type, which says what may stand right of which comparator. Text compares by its characters, capitals
included; only `:` on text, which looks for a part of it, takes ASCII capitals and small letters for the same.

What the filter asks of a list or map that a row does not have is false, `!=` included; so `NOT metrics.x = 1` is true
of a version without the metric x, and `metrics.x != 1` is not.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, ClassVar, Protocol

from sqlalchemy import ColumnElement, and_, exists, func, not_, or_, select, true, tuple_

from atelier.nearest import did_you_mean
from atelier.rpc.names import shown
from services.registry.filter_grammar import Junction, Negation, Node, Term, invalid_at

_COMPARE: dict[str, Callable[[Any, Any], ColumnElement[bool]]] = {
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_RFC_3339 = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?(Z|[+-]\d\d:\d\d)", re.ASCII)
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)


class Field(Protocol):
    """A field that a filter may name."""

    comparators: ClassVar[tuple[str, ...]]

    def condition(self, term: Term) -> ColumnElement[bool]:
        """What the term says of a row."""
        ...

    def lookup(self, term: Term, tenant: str, limit: int | None = None) -> ColumnElement[bool] | None:
        """The same of the tenant's rows alone, in a form that makes a database begin with the term's own index.

        None when there is no such index. The tenant comes as part of a list: beside `tenant = ?`, SQLite would rather
        walk through all of the tenant's rows in the order that is asked for. With a `limit` the list has no more.
        """
        ...


@dataclass(frozen=True, slots=True)
class TextField:
    """Text in a column. An `indexed` one has an index that begins with the tenant and the column."""

    comparators: ClassVar[tuple[str, ...]] = ("=", "!=", ":")
    column: Any
    indexed: bool = False

    def condition(self, term: Term) -> ColumnElement[bool]:
        if term.comparator == ":":
            return _contains(self.column, term)
        return _equals(self.column, term) if term.comparator == "=" else not_(_equals(self.column, term))

    def lookup(self, term: Term, tenant: str, limit: int | None = None) -> ColumnElement[bool] | None:
        if not self.indexed or term.comparator != "=" or term.value.is_prefix:
            return None
        return tuple_(self.column.class_.tenant, self.column).in_([(tenant, term.value.text)])


@dataclass(frozen=True, slots=True)
class TimeField:
    """A moment in a column."""

    comparators: ClassVar[tuple[str, ...]] = tuple(_COMPARE)
    column: Any

    def condition(self, term: Term) -> ColumnElement[bool]:
        return _COMPARE[term.comparator](self.column, _moment(term))

    def lookup(self, term: Term, tenant: str, limit: int | None = None) -> ColumnElement[bool] | None:
        return None


@dataclass(frozen=True, slots=True)
class SetField:
    """Text in a column of another table, several rows of which may belong to a row.

    Args:
        owner: the columns to which columns of the same names in the other table refer, the tenant first.
    """

    comparators: ClassVar[tuple[str, ...]] = (":",)
    column: Any
    owner: tuple[Any, ...]

    def condition(self, term: Term) -> ColumnElement[bool]:
        return _exists(self.column.class_, self.owner, _equals(self.column, term))

    def lookup(self, term: Term, tenant: str, limit: int | None = None) -> ColumnElement[bool] | None:
        if term.value.is_prefix:
            return None
        return _among(self.column.class_, self.owner, tenant, _equals(self.column, term), limit)


@dataclass(frozen=True, slots=True)
class NumberField:
    """A number by its name in another table; `:*` asks whether it is there."""

    comparators: ClassVar[tuple[str, ...]] = (*_COMPARE, ":")
    table: Any
    owner: tuple[Any, ...]
    name: str

    def condition(self, term: Term) -> ColumnElement[bool]:
        return _exists(self.table, self.owner, self._matches(term))

    def lookup(self, term: Term, tenant: str, limit: int | None = None) -> ColumnElement[bool] | None:
        return None if term.comparator == "!=" else _among(self.table, self.owner, tenant, self._matches(term), limit)

    def _matches(self, term: Term) -> ColumnElement[bool]:
        return and_(self.table.name == self.name, compared(self.table.value, term))


@dataclass(frozen=True, slots=True)
class Fields:
    """The fields of a resource.

    Args:
        plain: by name.
        maps: by the name before the first dot, the field of what stands after it.
    """

    plain: Mapping[str, Field]
    maps: Mapping[str, Callable[[str], Field]] = field(default_factory=dict)

    def condition(self, node: Node) -> ColumnElement[bool]:
        """The filter as an SQL condition. InvalidArgumentError when it does not suit the fields."""
        match node:
            case Negation(part):
                return not_(self.condition(part))
            case Junction(joined_by, parts):
                return (and_ if joined_by == "AND" else or_)(*map(self.condition, parts))
            case Term():
                return self._field(node).condition(node)

    def lookups(self, node: Node, tenant: str, limit: int) -> Iterator[tuple[ColumnElement[bool], ColumnElement[bool]]]:
        """The lookups, limited and not, of those terms that every row must fulfil and an index answers."""
        for term in necessary_terms(node):
            limited, whole = (self._field(term).lookup(term, tenant, each) for each in (limit, None))
            if limited is not None and whole is not None:
                yield limited, whole

    def _field(self, term: Term) -> Field:
        head, dot, rest = term.field.partition(".")
        if dot and head in self.maps:
            found = self.maps[head](rest)
        elif term.field in self.plain:
            found = self.plain[term.field]
        else:
            known = [*self.plain, *(f"{name}.NAME" for name in self.maps)]
            raise invalid_at(
                term.position,
                f"there is no field {shown(term.field)}; {did_you_mean(term.field, known)}there are {', '.join(known)}",
            )
        if term.comparator not in found.comparators:
            allowed = " ".join(found.comparators)
            raise invalid_at(term.position, f"{term.field} does not take {term.comparator}; it takes {allowed}")
        return found


def necessary_terms(node: Node | None) -> Sequence[Term]:
    """The terms without which the filter is false: those that AND joins at the top."""
    match node:
        case Term():
            return [node]
        case Junction("AND", parts):
            return [term for part in parts for term in necessary_terms(part)]
    return []


def compared(value: Any, term: Term) -> ColumnElement[bool]:
    """What a term says of a number; of one that is there, `:*` is true."""
    if term.comparator != ":":
        return _COMPARE[term.comparator](value, _number(term))
    if term.value.text or not term.value.is_prefix:
        raise invalid_at(term.position, f"{term.field} is a number; right of : stands *, which asks if it is there")
    return true()


def _equals(column: Any, term: Term) -> ColumnElement[bool]:
    text = term.value.text
    return func.substr(column, 1, len(text)) == text if term.value.is_prefix else column == text


def _contains(column: Any, term: Term) -> ColumnElement[bool]:
    text = term.value.text
    if not text:
        return column != ""
    return func.lower(column).contains(text.encode().lower().decode(), autoescape=True)


def _exists(table: Any, owner: tuple[Any, ...], matches: ColumnElement[bool]) -> ColumnElement[bool]:
    return exists().where(*(getattr(table, column.key) == column for column in owner), matches)


def _among(
    table: Any, owner: tuple[Any, ...], tenant: str, matches: ColumnElement[bool], limit: int | None
) -> ColumnElement[bool]:
    keys = select(*(getattr(table, column.key) for column in owner)).where(table.tenant == tenant, matches)
    return tuple_(*owner).in_(keys.limit(limit))


def _moment(term: Term) -> datetime:
    text = term.value.text
    try:
        if term.value.is_prefix or not _RFC_3339.fullmatch(text):
            raise ValueError
        return datetime.fromisoformat(text).astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise invalid_at(
            term.position,
            f"{term.field} is compared with {shown(text)}; it takes an RFC 3339 time such as 2026-01-31T12:00:00Z",
        ) from error


def _number(term: Term) -> float:
    text = term.value.text
    if term.value.is_prefix or not _NUMBER.fullmatch(text) or not math.isfinite(float(text)):
        raise invalid_at(
            term.position, f"{term.field} is compared with {shown(text)}; it takes a finite number such as 0.75"
        )
    return float(text)
