"""Orders of lists (AIP-132), and walks through rows in them.

A walk begins behind the sort key of the last item of the page before (keyset pagination), so that a deep page costs
what the first does, and no item comes twice or is left out because others came or went in between.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Select, literal, tuple_
from sqlalchemy.orm import Session

from atelier.errors import InvalidArgumentError
from atelier.nearest import did_you_mean
from atelier.rpc.names import shown

_FORM = re.compile(r"\s*(\w[\w.-]*)(\s+desc)?\s*")
Found = tuple[tuple[Any, ...], Any]
"""A row, after its sort key."""


@dataclass(frozen=True, slots=True)
class Order:
    """By one field; items with equal values are ordered by their names, in the same direction."""

    field: str
    descends: bool

    def walk(
        self, session: Session, query: Select[Any], columns: Sequence[Any], after: tuple[Any, ...], limit: int
    ) -> list[Found]:
        """The next rows of a query for rows of one table.

        Args:
            columns: the sort key.
            after: the sort key of the last row before, or nothing.
        """
        if after:
            last = tuple_(*(literal(part, column.type) for part, column in zip(after, columns, strict=True)))
            query = query.where((operator.lt if self.descends else operator.gt)(tuple_(*columns), last))
        query = query.order_by(*(column.desc() if self.descends else column for column in columns))
        return [(tuple(key), row) for row, *key in session.execute(query.add_columns(*columns).limit(limit))]


def parse_order(order_by: str, default: Order, fields: Sequence[str], map_: str | None = None) -> Order:
    """The order that a request asks for: a field, with ` desc` behind it for the other direction.

    Args:
        fields: the fields that there are.
        map_: one with further fields below it.
    """
    if not order_by.strip():
        return default
    match = _FORM.fullmatch(order_by[:200])
    field = match[1] if match else order_by
    if match is None or not (field in fields or (map_ and field.startswith(f"{map_}."))):
        known = [*fields, *([f"{map_}.NAME"] if map_ else [])]
        allowed = f"{did_you_mean(field, known)}allowed is {' or '.join(known)}, with or without ` desc` behind it"
        raise InvalidArgumentError("order_by", f"is {shown(order_by)}; {allowed}")
    return Order(field, bool(match[2]))
