"""Pagination (AIP-158): sizes that are coerced, and opaque tokens that are bound to their arguments.

A token holds the sort key of the last item of its page, so a page stays right while items come and go.
It grants nothing: the caller's tenant is checked on every page.
"""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import dataclass

from atelier.errors import InvalidArgumentError

DEFAULT_SIZE = 50
MAX_SIZE = 1000


@dataclass(frozen=True, slots=True)
class Page:
    """Which page is asked for: at most `size` items that come after `after` (None for the first page)."""

    size: int
    after: str | int | None
    _binding: str

    def token_after(self, key: str | int) -> str:
        """The token of the page that follows the item with this sort key."""
        return base64.urlsafe_b64encode(json.dumps([self._binding, key]).encode()).decode()


def parse_page(page_size: int, page_token: str, *arguments: str) -> Page:
    """The page that a List request asks for; `arguments` are its other fields, to which the token is bound."""
    if page_size < 0:
        raise InvalidArgumentError("page_size", f"is {page_size}; it must be 0 (the default of {DEFAULT_SIZE}) or more")
    size = min(page_size or DEFAULT_SIZE, MAX_SIZE)
    binding = hashlib.sha256(json.dumps(arguments).encode()).hexdigest()[:16]
    if not page_token:
        return Page(size, None, binding)
    try:
        token_binding, after = json.loads(base64.urlsafe_b64decode(page_token.encode()))
    except (ValueError, TypeError, RecursionError) as error:
        raise InvalidArgumentError("page_token", "is not a token that this service gave") from error
    if token_binding != binding or not isinstance(after, str | int):
        raise InvalidArgumentError("page_token", "belongs to a request with other arguments")
    return Page(size, after, binding)
