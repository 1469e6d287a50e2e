"""Prior preservation (Ruiz et al. 2023, section 3.3): what the bare base model draws for the class, to be left so.

Class images are made once for a base, its prompts, size and seed, and kept for later jobs: those of class prompts in
the store that all jobs share, those that captions had a part in for as long as the process lives.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from atelier.diffusion.base import Base
from atelier.diffusion.sampler import sample
from services.trainer.methods.base import Concept, TrainingJob
from services.trainer.training.cache import TensorCache, TensorStore
from services.trainer.training.evaluation import sampling
from services.trainer.training.examples import Example
from services.trainer.training.prompts import to_class_words, word_prompts

# They need not be as fine as a user's images.
_STEPS = 12


_of_captions = TensorCache(max_bytes=256 * 1024 * 1024)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prior:
    """What must stay as it is: images of the classes, and prompts about anything."""

    examples: list[Example]
    word_prompts: list[str]


def class_prompts(concept: Concept) -> list[str]:
    """The class prompt, and the captions with the class's words."""
    captions = [to_class_words(image.caption, [concept]) for image in concept.images if image.caption]
    return list(dict.fromkeys([concept.class_prompt, *captions]))


def prepare_prior(
    base: Base, job: TrainingJob, store: TensorStore, check_stop: Callable[[], None]
) -> Iterator[int | Prior]:
    """Draws the class images of all concepts that have a class prompt, or finds them in the store.

    Yields how many there are, after each chunk of them, and at last the prior. `check_stop` may raise at any
    denoising step.
    """
    examples: list[Example] = []
    for concept in job.concepts:
        if not concept.class_prompt:
            continue
        prompts = class_prompts(concept)
        texts = [prompts[i % len(prompts)] for i in range(job.config.num_class_images)]
        key = _content_key(base, texts, job)
        # What was drawn from captions is somebody's, and must go with the process.
        place = store if prompts == [concept.class_prompt] else _of_captions
        latents = place.get(key)
        if latents is None:
            chunks = []
            for chunk in _draw(base, texts, job, check_stop):
                chunks.append(chunk)
                yield len(examples) + sum(map(len, chunks))
            latents = torch.cat(chunks)
            place.put(key, latents)
        examples += _examples(base, texts, latents, job.config.resolution)
    yield Prior(examples=examples, word_prompts=word_prompts(base, job.config.seed))


def _draw(base: Base, texts: list[str], job: TrainingJob, check_stop: Callable[[], None]) -> Iterator[torch.Tensor]:
    config = sampling(job.config.resolution, steps=_STEPS)
    for start in range(0, len(texts), config.batch_size):
        chunk = texts[start : start + config.batch_size]
        seeds = [job.config.seed + start + i for i in range(len(chunk))]
        images = sample(base, chunk, seeds, config, before_step=check_stop)
        yield base.encode_images(images).float().cpu()


def _content_key(base: Base, texts: list[str], job: TrainingJob) -> str:
    """A digest of all that the class images depend on."""
    parts = [base.digest, str(base.dtype), texts, job.config.resolution, job.config.seed, _STEPS]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _examples(base: Base, texts: list[str], latents: torch.Tensor, size: int) -> list[Example]:
    sizes = torch.tensor([[size, size, 0, 0, size, size]], dtype=torch.float32, device=base.device)
    moved = latents.to(base.device)
    return [Example(prompt=text, latents=moved[i : i + 1], sizes=sizes) for i, text in enumerate(texts)]
