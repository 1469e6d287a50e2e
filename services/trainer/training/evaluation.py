"""Scores of a job's result, the base model's beside the adapter's.

Both draw the same prompts with the same seeds; the base's prompts have the class's words in place of the instance's,
since it has never heard of the instance. CLIP-T is measured against the class's words for both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch

from atelier.diffusion import scores as measures
from atelier.diffusion.dino import DinoScorer
from atelier.diffusion.sampler import SamplingConfig, sample
from atelier.diffusion.scorer import ClipScorer
from services.trainer.methods.base import Evaluated, Scores, TrainingJob
from services.trainer.training.examples import load_squares
from services.trainer.training.prompts import to_class_words
from services.trainer.training.student import Student

# Images per prompt: few prompts get more of them, so that a score is a mean of at least this many where it can be.
_IMAGES = 16
_MAX_IMAGES_PER_PROMPT = 4
_PIXELS_AT_ONCE = 2**20
# Of each class prompt, for PRES and DIV.
_CLASS_IMAGES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Scorers:
    """The models that score images of one base model; DINO is the operator's to give."""

    clip: ClipScorer
    dino: DinoScorer | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """The scores, if there were scorers; for each prompt one image (uint8 [N, height, width, 3])."""

    scores: Evaluated | None
    samples: torch.Tensor
    """The adapter's."""
    base_samples: torch.Tensor | None = None
    """The bare base model's, of the same seed; None without scorers."""


def validation_prompts(job: TrainingJob) -> list[str]:
    """The job's, or what each concept's first image is learnt with where it has none."""
    first = [concept.instance_prompt or concept.images[0].caption for concept in job.concepts]
    return list(job.validation_prompts) or list(dict.fromkeys(first))


def sampling(size: int, *, steps: int = 20) -> SamplingConfig:
    """How the trainer draws: as many images at once as make up a million pixels, at most four."""
    return SamplingConfig(size=size, steps=steps, batch_size=max(1, min(4, _PIXELS_AT_ONCE // size**2)))


class Evaluator:
    """Draws and scores for one job.

    Args:
        check_stop: may raise at any denoising step.
    """

    def __init__(
        self, student: Student, job: TrainingJob, scorers: Scorers | None, check_stop: Callable[[], None]
    ) -> None:
        self.student, self.job, self.scorers, self.check_stop = student, job, scorers, check_stop
        self._sampling = sampling(job.config.resolution)

    def evaluate(self) -> Evaluation:
        """Scores base and adapter on the validation prompts and on the class prompts."""
        prompts = validation_prompts(self.job)
        if self.scorers is None:
            return Evaluation(scores=None, samples=self.draw(prompts, 1))
        per_prompt = max(1, min(_MAX_IMAGES_PER_PROMPT, _IMAGES // len(prompts)))
        classes = list(dict.fromkeys(concept.class_prompt for concept in self.job.concepts if concept.class_prompt))
        images = self.draw(prompts, per_prompt)
        adapter = self.score(images, prompts, self.draw(classes, _CLASS_IMAGES) if classes else None)
        bare = self.draw_bare(self.class_words(prompts), per_prompt)
        base = self.score(bare, prompts, self.draw_bare(classes, _CLASS_IMAGES) if classes else None)
        return Evaluation(
            scores=Evaluated(base=base, adapter=adapter),
            samples=images[::per_prompt],
            base_samples=bare[::per_prompt],
        )

    def rehearse(self) -> None:
        """Draws as many rows at once as any drawing will, in a single step."""
        prompts = validation_prompts(self.job) * self._sampling.batch_size
        rows = prompts[: self._sampling.batch_size]
        self.student.draw(rows, [0] * len(rows), replace(self._sampling, steps=1), self.check_stop)

    def draw(self, prompts: Sequence[str], per_prompt: int) -> torch.Tensor:
        """Images of each prompt with the adapter, one prompt after the other."""
        return self.student.draw(*self._rows(prompts, per_prompt), self._sampling, self.check_stop)

    def draw_bare(self, prompts: Sequence[str], per_prompt: int) -> torch.Tensor:
        """The same with the bare base model."""
        return sample(self.student.bare, *self._rows(prompts, per_prompt), self._sampling, before_step=self.check_stop)

    def class_words(self, prompts: Sequence[str]) -> list[str]:
        """The prompts as the base understands them."""
        return [to_class_words(prompt, self.job.concepts) for prompt in prompts]

    def score(self, images: torch.Tensor, prompts: Sequence[str], class_images: torch.Tensor | None = None) -> Scores:
        """Scores of as many images of each prompt as there are; `class_images` are `_CLASS_IMAGES` of each class."""
        assert self.scorers is not None
        clip, dino = self.scorers.clip, self.scorers.dino
        references = self._references[0]
        embedded = clip.embed_images(images)
        per_prompt = len(images) // len(prompts)
        texts = clip.embed_prompts([text for text in self.class_words(prompts) for _ in range(per_prompt)])
        values = {
            "clip_i": measures.mean_similarity(embedded, references),
            "clip_t": measures.prompt_similarity(embedded, texts),
            "nearest": measures.nearest(embedded, references),
        }
        if dino is not None:
            values["dino"] = measures.mean_similarity(dino.embed_images(images), self._references[1])
        if class_images is not None:
            features = dino or clip
            drawn = features.embed_images(class_images)
            values["pres"] = measures.pres(drawn, self._references[-1])
            values["div"] = measures.div(drawn, [i // _CLASS_IMAGES for i in range(len(drawn))])
        return Scores(**values)

    @cached_property
    def _references(self) -> list[torch.Tensor]:
        """The training images' features: CLIP's, and DINO's where there is such a model."""
        assert self.scorers is not None
        squares = load_squares(self.job)
        models = [model for model in (self.scorers.clip, self.scorers.dino) if model is not None]
        return [model.embed_images(squares) for model in models]

    def _rows(self, prompts: Sequence[str], per_prompt: int) -> tuple[list[str], list[int]]:
        seeds = [self.job.config.seed + i for i in range(per_prompt)]
        return [prompt for prompt in prompts for _ in seeds], seeds * len(prompts)
