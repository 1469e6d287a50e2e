"""What a training method takes and what it tells while it works. Needs no torch.

A method is a module with a generator `train(job, base, scorer, *, resume, should_stop)` of the events below. It ends
with `Finished`, or raises: `CancelledError` when `should_stop` said so, another `AtelierError` when the job failed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from services.trainer.training.config import BaseFacts, TrainingConfig

if TYPE_CHECKING:
    from atelier.diffusion.base import Base
    from atelier.diffusion.scorer import ClipScorer


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingImage:
    """An image file's contents, and its caption or an empty text."""

    path: str
    contents: bytes = field(repr=False)
    caption: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingJob:
    """All that a result depends on, beside the base model."""

    method: str
    config: TrainingConfig
    images: tuple[TrainingImage, ...]
    dataset_digest: str
    instance_prompt: str
    class_prompt: str = ""
    validation_prompts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Preparing:
    """Before the first step: what is being made ready."""

    what: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StepDone:
    """An optimizer step is done. The loss is smoothed over about 20 steps."""

    step: int
    total_steps: int
    loss: float
    images_per_second: float
    eta_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Previews:
    """Images that the adapter draws at this step, as PNG."""

    step: int
    prompts: tuple[str, ...]
    pngs: tuple[bytes, ...] = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointReady:
    """All that resuming after this step needs, as the contents of a safetensors file."""

    step: int
    contents: bytes = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluating:
    """Training is over; the result is being checked and scored."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """Mean cosines over the validation images."""

    clip_i: float
    clip_t: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluated:
    """The base model's scores beside the adapter's."""

    base: Scores
    adapter: Scores


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """The adapter's files by path, checked, ready to be published."""

    files: Mapping[str, bytes] = field(repr=False)


Event = Preparing | StepDone | Previews | CheckpointReady | Evaluating | Evaluated | Finished


class Train(Protocol):
    """A method's generator of events."""

    def __call__(
        self,
        job: TrainingJob,
        base: Base,
        scorer: ClipScorer | None,
        *,
        resume: bytes | None = None,
        should_stop: Callable[[], bool] = ...,
    ) -> Iterator[Event]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """Where a method's `train` is, and its default hyperparameters for a base model."""

    module: str
    defaults: Callable[[BaseFacts], dict[str, Any]]
