"""Validation images and their scores, the base model's beside the adapter's.

Both draw the same prompts with the same seeds; the base's prompts have the class's words in place of the instance's,
since it has never heard of the instance. CLIP-T is measured against the class's words for both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch

from atelier.diffusion.base import Base
from atelier.diffusion.sampler import SamplingConfig, sample
from atelier.diffusion.scorer import ClipScorer
from atelier.diffusion.slots import TrainingSlots
from services.trainer.methods.base import Evaluated, Scores, TrainingJob
from services.trainer.training.data import to_class_words

# Images per prompt: few prompts get more of them, so that a score is a mean of at least this many where it can be.
_IMAGES = 16
_MAX_IMAGES_PER_PROMPT = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """The scores, if there was a scorer; for each prompt the adapter's first image (uint8 [N, height, width, 3])."""

    scores: Evaluated | None
    samples: torch.Tensor


def validation_prompts(job: TrainingJob) -> list[str]:
    """The job's, or its instance prompt (or first caption) where it has none."""
    return list(job.validation_prompts) or [job.instance_prompt or job.images[0].caption]


def draw(
    base: Base,
    job: TrainingJob,
    prompts: Sequence[str],
    slots: TrainingSlots | None,
    *,
    per_prompt: int,
    check_stop: Callable[[], None],
) -> torch.Tensor:
    """Draws `per_prompt` images of each prompt, with the slots' adapter or, without slots, with the bare base.

    `check_stop` may raise at any denoising step.
    """
    seeds = [job.config.seed + i for i in range(per_prompt)]
    with slots.bind(slots.gather()) if slots else nullcontext(), torch.no_grad():
        return sample(
            base,
            [prompt for prompt in prompts for _ in seeds],
            seeds * len(prompts),
            SamplingConfig(size=job.config.resolution),
            before_step=check_stop,
        )


def evaluate(
    base: Base,
    scorer: ClipScorer | None,
    job: TrainingJob,
    slots: TrainingSlots,
    references: torch.Tensor,
    check_stop: Callable[[], None],
) -> Evaluation:
    """Scores base and adapter on the validation prompts; `references` are the training images.

    Without a scorer, it only draws the samples. `check_stop` may raise at any denoising step.
    """
    prompts = validation_prompts(job)
    if scorer is None:
        return Evaluation(scores=None, samples=draw(base, job, prompts, slots, per_prompt=1, check_stop=check_stop))
    per_prompt = max(1, min(_MAX_IMAGES_PER_PROMPT, _IMAGES // len(prompts)))
    class_words = [to_class_words(prompt, job) for prompt in prompts]
    texts = [text for text in class_words for _ in range(per_prompt)]

    def score(images: torch.Tensor) -> Scores:
        return Scores(
            clip_i=scorer.clip_i(images, references).mean().item(), clip_t=scorer.clip_t(images, texts).mean().item()
        )

    with_adapter = draw(base, job, prompts, slots, per_prompt=per_prompt, check_stop=check_stop)
    without = draw(base, job, class_words, None, per_prompt=per_prompt, check_stop=check_stop)
    return Evaluation(
        scores=Evaluated(base=score(without), adapter=score(with_adapter)), samples=with_adapter[::per_prompt]
    )
