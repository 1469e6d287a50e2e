"""Loads the lists of many rows at once, such as the files of a page's versions.

As `selectin` loading of SQLAlchemy does, but with a join to the rows' keys: to find many keys of several columns that
are given as `IN`, SQLite would read the whole table.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from sqlalchemy import CTE, ColumnClause, and_, column, func, inspect, select, text
from sqlalchemy.orm import Session
from sqlalchemy.orm.attributes import set_committed_value


def load_lists(session: Session, rows: Sequence[Any], *names: str) -> None:
    """Loads relationships by their names, for rows of one table whose primary key has the same names in theirs."""
    if not rows:
        return
    key_names = [each.key for each in inspect(type(rows[0])).primary_key]
    keys = _constant_table([_key(row, key_names) for row in rows])
    for name in names:
        table = getattr(type(rows[0]), name).property.mapper.class_
        is_own = and_(*(getattr(table, key) == part for key, part in zip(key_names, keys.c, strict=True)))
        found = defaultdict(list)
        for item in session.scalars(select(table).join(keys, is_own)):
            found[_key(item, key_names)].append(item)
        for row in rows:
            set_committed_value(row, name, found[_key(row, key_names)])


def count_items(session: Session, rows: Sequence[Any], name: str) -> list[int]:
    """How many items each row has in a relationship, of which nothing is loaded. Otherwise as `load_lists`."""
    if not rows:
        return []
    key_names = [each.key for each in inspect(type(rows[0])).primary_key]
    keys = _constant_table([_key(row, key_names) for row in rows])
    table = getattr(type(rows[0]), name).property.mapper.class_
    columns = [getattr(table, key) for key in key_names]
    is_own = and_(*(column == part for column, part in zip(columns, keys.c, strict=True)))
    counted = session.execute(select(func.count(), *columns).join(keys, is_own).group_by(*columns))
    counts = {tuple(key): count for count, *key in counted}
    return [counts.get(_key(row, key_names), 0) for row in rows]


def _key(row: Any, names: Sequence[str]) -> tuple[Any, ...]:
    return tuple(getattr(row, name) for name in names)


def _constant_table(rows: Sequence[tuple[Any, ...]]) -> CTE:
    """As sqlalchemy.values, which takes longer to compile than the query takes to run."""
    parameters = {f"r{row}_{part}": value for row, key in enumerate(rows) for part, value in enumerate(key)}
    width = len(rows[0])
    lines = (f"({', '.join(f':r{row}_{part}' for part in range(width))})" for row in range(len(rows)))
    names: list[ColumnClause[Any]] = [column(f"column{part + 1}") for part in range(width)]
    return text(f"VALUES {', '.join(lines)}").bindparams(**parameters).columns(*names).cte("page")
