"""Pagination (AIP-158): sizes that are coerced, and opaque tokens that are bound to their arguments.

A token holds the sort key of the last item of its page, so a page stays right while items come and go.
It grants nothing: the caller's tenant is checked on every page.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar

from atelier.errors import InvalidArgumentError

DEFAULT_SIZE = 50
MAX_SIZE = 1000
MAX_NUMBER = 2**31 - 1
"""Above every number that counts something."""
Item = TypeVar("Item")
Part = str | int | float | datetime | None
"""Of a sort key."""
Key = str | int | tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class Page:
    """Which page is asked for: at most `size` items whose sort keys come after `after`."""

    size: int
    after: Any
    _binding: str

    def cut(self, items: Sequence[Item], key: Callable[[Item], Key]) -> tuple[Sequence[Item], str]:
        """The page's items out of up to `size` + 1 that were found, and the next page's token, empty on the last."""
        if len(items) <= self.size:
            return items, ""
        content = json.dumps([self._binding, key(items[self.size - 1])], default=datetime.isoformat)
        return items[: self.size], base64.urlsafe_b64encode(content.encode()).decode()


def parse_page(
    page_size: int, page_token: str, *arguments: str, first: Key = "", parts: Sequence[Sequence[type]] = ()
) -> Page:
    """The page that a List request asks for.

    Args:
        arguments: the request's other fields, to which the token is bound.
        first: `after` on the first page: "" for keys that ascend, the highest number for numbers that descend, () for
            keys of several parts.
        parts: the types that each part of such a key may have: str, int, float, datetime, NoneType.
    """
    if page_size < 0:
        raise InvalidArgumentError("page_size", f"is {page_size}; it must be 0 (the default of {DEFAULT_SIZE}) or more")
    size = min(page_size or DEFAULT_SIZE, MAX_SIZE)
    binding = hashlib.sha256(json.dumps(arguments).encode()).hexdigest()[:16]
    if not page_token:
        return Page(size, first, binding)
    try:
        token_binding, after = json.loads(base64.urlsafe_b64decode(page_token.encode()))
    except (ValueError, TypeError, RecursionError) as error:
        raise InvalidArgumentError("page_token", "is not a token that this service gave") from error
    if token_binding != binding:
        raise InvalidArgumentError("page_token", "belongs to a request with other arguments")
    try:
        return Page(size, _key(after, first, parts), binding)
    except (ValueError, TypeError, OverflowError) as error:
        raise InvalidArgumentError("page_token", "is not a token that this service gave") from error


def _key(after: Any, first: Key, parts: Sequence[Sequence[type]]) -> Key:
    if not isinstance(first, tuple):
        key = _part(after, (type(first),))
        if isinstance(first, int) and after > first:
            raise ValueError
        return key
    return tuple(_part(part, kinds) for part, kinds in zip(after, parts, strict=True))


def _part(value: Any, kinds: Sequence[type]) -> Any:
    """The part of a key that a token tells; ValueError or TypeError when it is none that a database could have."""
    kind = type(value)
    if kind is str and datetime in kinds:
        return datetime.fromisoformat(value).astimezone(UTC)
    is_sound = kind in kinds and (
        (kind is str and value.isprintable())
        or (kind is int and 0 < value <= MAX_NUMBER)
        or (kind is float and math.isfinite(value))
        or value is None
    )
    if not is_sound:
        raise ValueError
    return value
