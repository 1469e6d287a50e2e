"""What a training method takes and what it tells while it works. Needs no torch.

A method is a module with a `training.run.TrainingMethod` called METHOD: what is trained. Running it is a generator of
the events below that ends with `Finished`, or raises: `CancelledError` when `should_stop` said so, another
`AtelierError` when the job failed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from services.trainer.training.config import BaseFacts, TrainingConfig

if TYPE_CHECKING:
    from atelier.diffusion.base import Base
    from services.trainer.training.cache import TensorStore
    from services.trainer.training.evaluation import Scorers


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingImage:
    """An image file's contents, and its caption or an empty text."""

    path: str
    contents: bytes = field(repr=False)
    caption: str = ""
    mask: bytes | None = field(default=None, repr=False)
    """An image file of the same upright size, white where the loss counts; None when the whole image does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Concept:
    """A subject or style: its images, and the prompts that stand for it."""

    images: tuple[TrainingImage, ...]
    instance_prompt: str
    """The prompt of images without a caption; empty when all have one."""
    class_prompt: str = ""
    """The prompt of prior-preservation images; empty switches prior preservation off."""
    placeholder_token: str = ""
    """The word of the prompts that stands for the learned embeddings; empty for methods that learn none."""
    repeats: int = 1
    """How often each image comes in an epoch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingJob:
    """All that a result depends on, beside the base model. There is at least one concept."""

    method: str
    config: TrainingConfig
    concepts: tuple[Concept, ...]
    dataset_digest: str
    """Of the dataset; of all concepts' datasets together when there are several concepts."""
    validation_prompts: tuple[str, ...] = ()

    @property
    def images(self) -> tuple[TrainingImage, ...]:
        """The images of all concepts, in order."""
        return tuple(image for concept in self.concepts for image in concept.images)

    @property
    def instance_prompt(self) -> str:
        """Of the first concept."""
        return self.concepts[0].instance_prompt

    @property
    def class_prompt(self) -> str:
        """Of the first concept."""
        return self.concepts[0].class_prompt


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
    """Scores of generated images, as `atelier.trainer.v1.Scores` defines them."""

    clip_i: float
    clip_t: float
    nearest: float
    dino: float | None = None
    """None without a DINO model."""
    pres: float | None = None
    """None, as `div`, without a class prompt."""
    div: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluated:
    """The base model's scores beside the adapter's."""

    base: Scores
    adapter: Scores


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """The adapter's files by path, checked, ready to be published."""

    files: Mapping[str, bytes | Path] = field(repr=False)
    """Contents, or where they are until the next event is asked for."""


Event = Preparing | StepDone | Previews | CheckpointReady | Evaluating | Evaluated | Finished


class Train(Protocol):
    """A method's generator of events."""

    def __call__(
        self,
        job: TrainingJob,
        base: Base,
        scorers: Scorers | None,
        *,
        resume: bytes | None = None,
        should_stop: Callable[[], bool] = ...,
        store: TensorStore = ...,
    ) -> Iterator[Event]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """Where a method's METHOD is, the hyperparameters that it uses, and the service's own values of all of them."""

    module: str
    fields: frozenset[str]
    defaults: Callable[[BaseFacts], dict[str, Any]]
