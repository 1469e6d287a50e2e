"""What every training method has around its events: it stops when asked to, and says so when memory runs out."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import closing

import torch

from atelier.errors import CancelledError, ResourceExhaustedError
from services.trainer.methods.base import Event, Finished


def stop_check(should_stop: Callable[[], bool]) -> Callable[[], None]:
    """For calls amid long work: raises CancelledError once `should_stop` says so."""

    def check_stop() -> None:
        if should_stop():
            raise CancelledError("the job was asked to stop")

    return check_stop


def guarded(events: Generator[Event, None, None], check_stop: Callable[[], None]) -> Iterator[Event]:
    """A method's events, with `check_stop` after each but `Finished`: the result is complete then.

    Raises:
        CancelledError: from `check_stop`.
        ResourceExhaustedError: the GPU's memory ran out; what the job held of it is free again.
    """
    try:
        with closing(events):
            for event in events:
                yield event
                if isinstance(event, Finished):
                    return
                check_stop()
            return
    except torch.OutOfMemoryError:
        pass  # The traceback holds on to the job's tensors, so the memory is freed after it is gone.
    torch.cuda.empty_cache()
    raise ResourceExhaustedError(
        "the GPU has not enough memory for this job; try gradient_checkpointing, a smaller train_batch_size or "
        "resolution, or optimizer=adamw-8bit",
        reason="OUT_OF_MEMORY",
    )
