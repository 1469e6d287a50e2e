"""What every training method has around its events."""

from __future__ import annotations

from collections.abc import Generator

import pytest
import torch

from atelier.errors import CancelledError, ResourceExhaustedError
from services.trainer.methods.base import Event, Finished, Preparing
from services.trainer.training.guard import guarded, stop_check


class Method:
    """Yields two events; notes when it has been closed."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.is_closed = False

    def events(self) -> Generator[Event, None, None]:
        try:
            yield Preparing(what="images")
            if self.error:
                raise self.error
            yield Finished(files={})
        finally:
            self.is_closed = True


def test_a_stop_is_asked_for_after_every_event_but_the_last() -> None:
    seen: list[Event] = []
    asked_after: list[Event] = []

    def should_stop() -> bool:
        asked_after.append(seen[-1])
        return isinstance(seen[-1], Finished)

    seen.extend(guarded(Method().events(), stop_check(should_stop)))
    assert [type(event) for event in seen] == [Preparing, Finished]
    assert asked_after == seen[:1]


def test_a_stop_closes_the_method_at_once() -> None:
    method = Method()
    with pytest.raises(CancelledError, match="asked to stop"):
        list(guarded(method.events(), stop_check(lambda: True)))
    assert method.is_closed


def test_a_full_gpu_is_told_with_advice() -> None:
    method = Method(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB."))
    with pytest.raises(ResourceExhaustedError, match="smaller train_batch_size or resolution") as failure:
        list(guarded(method.events(), stop_check(lambda: False)))
    assert failure.value.reason == "OUT_OF_MEMORY"
    assert failure.value.__context__ is None, "its traceback would hold on to the memory"
    assert method.is_closed


def test_other_errors_pass_through() -> None:
    with pytest.raises(ZeroDivisionError):
        list(guarded(Method(ZeroDivisionError()).events(), stop_check(lambda: False)))
