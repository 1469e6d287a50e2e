"""How many requests may wait before their first denoising step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from atelier.errors import ResourceExhaustedError
from services.inference import metrics

RETRY_SECONDS = 2.0


class WaitingLine:
    """Counts the requests that wait, whatever for: the registry, a slot, or their turn. One event loop's own."""

    def __init__(self, max_requests: int) -> None:
        self._max_requests = max_requests
        self._waiting = 0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """A place in the line.

        Raises:
            ResourceExhaustedError: the line is full.
        """
        if self._waiting >= self._max_requests:
            raise ResourceExhaustedError(
                f"{self._waiting} requests are waiting already; send it again later",
                reason="QUEUE_FULL",
                metadata={"max_queued_requests": str(self._max_requests)},
                retry_after_seconds=RETRY_SECONDS,
            )
        self._waiting += 1
        metrics.QUEUED_REQUESTS.inc()
        try:
            yield
        finally:
            self._waiting -= 1
            metrics.QUEUED_REQUESTS.dec()
