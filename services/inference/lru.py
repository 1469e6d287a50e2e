"""A small cache that forgets what was used longest ago. Safe for use by several threads."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

Value = TypeVar("Value")


class LruCache(Generic[Value]):
    """Values by text, up to a total cost.

    Args:
        max_cost: what all values together may cost; a value that alone costs more is not kept.
        cost: of one value.
    """

    def __init__(self, max_cost: int, cost: Callable[[Value], int]) -> None:
        self._max_cost = max_cost
        self._cost = cost
        self._total = 0
        self._values: OrderedDict[str, Value] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: str) -> Value | None:
        """The value, now the most recently used one, or None."""
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
            return self._values.get(key)

    def put(self, key: str, value: Value) -> None:
        """Keeps a value, and forgets others until all fit."""
        with self._lock:
            if key in self._values:
                self._total -= self._cost(self._values.pop(key))
            self._values[key] = value
            self._total += self._cost(value)
            while self._total > self._max_cost:
                self._total -= self._cost(self._values.popitem(last=False)[1])
