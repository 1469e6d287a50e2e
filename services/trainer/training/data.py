"""Training examples: images as cached latents, prompts as cached text embeddings.

Neither the VAE nor the text encoder runs again once the examples are made.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageOps

from atelier.diffusion.base import Base, encode_images, encode_prompts
from atelier.diffusion.sampler import SamplingConfig, sample
from services.trainer.images import open_upright
from services.trainer.methods.base import TrainingJob
from services.trainer.training.cache import TensorCache
from services.trainer.training.noise import seeded_generator

# Sampling of prior-preservation images: they need not be as fine as a user's.
_CLASS_IMAGE_STEPS = 12
_CLASS_IMAGE_CHUNK = 8
_WORD_PROMPTS = 128
_MIN_WORD_LETTERS = 4
_class_latents = TensorCache(max_bytes=512 * 1024 * 1024)


@dataclass(frozen=True, slots=True)
class Examples:
    """Latents [N, channels, height, width] and, row by row, their text embeddings [N, 77, width]."""

    latents: torch.Tensor
    text: torch.Tensor

    def __len__(self) -> int:
        return len(self.latents)

    def rows(self, indices: Sequence[int]) -> Examples:
        return Examples(self.latents[list(indices)], self.text[list(indices)])


@dataclass(frozen=True, slots=True)
class Prior:
    """What the adapter must leave as it is: the class's images, and prompts [M, 77, width] about anything."""

    examples: Examples
    word_text: torch.Tensor


def load_images(job: TrainingJob) -> torch.Tensor:
    """The job's images, upright, cropped to the central square and resized: uint8 [N, resolution, resolution, 3].

    Raises:
        InvalidArgumentError: an image that is not allowed or cannot be decoded; the message names it.
    """
    size = (job.config.resolution, job.config.resolution)
    opened = (open_upright(io.BytesIO(image.contents), "job.dataset", image.path) for image in job.images)
    squares = (ImageOps.fit(image, size, Image.Resampling.LANCZOS) for image in opened)
    return torch.stack([torch.from_numpy(np.array(square)) for square in squares])


def instance_examples(base: Base, job: TrainingJob, images: torch.Tensor) -> Examples:
    """The images with their captions, or the instance prompt where there is none."""
    return _with_text(base, encode_images(base, images), [c.caption or job.instance_prompt for c in job.images])


def class_prompts(job: TrainingJob) -> list[str]:
    """Prompts of the prior-preservation images: the class prompt, and the captions with the class's words."""
    captions = [to_class_words(image.caption, job) for image in job.images if image.caption]
    return list(dict.fromkeys([job.class_prompt, *captions]))


def prepare_prior(base: Base, job: TrainingJob, check_stop: Callable[[], None]) -> Iterator[int | Prior]:
    """Draws what the bare base model makes of the class prompts (Ruiz et al. 2023, section 3.3).

    Yields the number of images that are ready, after each chunk of them, and at last the prior. Images are kept in
    memory for later jobs with the same base model, prompts and seed. `check_stop` may raise at any step of them.
    """
    config, prompts = job.config, class_prompts(job)
    key = (base.digest, tuple(prompts), config.num_class_images, config.resolution, config.seed)
    texts = [prompts[i % len(prompts)] for i in range(config.num_class_images)]
    latents = _class_latents.get(key)
    if latents is None:
        chunks = []
        for start in range(0, len(texts), _CLASS_IMAGE_CHUNK):
            chunk = texts[start : start + _CLASS_IMAGE_CHUNK]
            seeds = [config.seed + start + i for i in range(len(chunk))]
            sampling = SamplingConfig(size=config.resolution, steps=_CLASS_IMAGE_STEPS)
            images = sample(base, chunk, seeds, sampling, before_step=check_stop)
            chunks.append(encode_images(base, images).cpu())
            yield start + len(chunk)
        latents = torch.cat(chunks)
        _class_latents.put(key, latents)
    words = encode_prompts(base, word_prompts(base, config.seed))
    yield Prior(_with_text(base, latents.to(base.device), texts), words)


def word_prompts(base: Base, seed: int) -> list[str]:
    """Prompts of random words that the base's tokenizer has as one token: a sample of all that may be asked of it."""
    end = "</w>"
    tokens = (token for token in base.tokenizer.get_vocab() if token.endswith(end))
    words = sorted(
        word for token in tokens if len(word := token.removesuffix(end)) >= _MIN_WORD_LETTERS and word.isalpha()
    )
    chosen = torch.randint(len(words), (_WORD_PROMPTS, 2), generator=seeded_generator(seed, "words", 0)).tolist()
    return [
        f"a photo of a {words[first]}" if i % 2 else f"a {words[first]} {words[second]}"
        for i, (first, second) in enumerate(chosen)
    ]


def to_class_words(prompt: str, job: TrainingJob) -> str:
    """`prompt` with the words that only the instance prompt has replaced by those that only the class prompt has.

    With `a photo of a sks fox` and `a photo of a fox face`, `a sks fox in snow` becomes `a fox face in snow`.
    """
    instance, klass = job.instance_prompt.split(), job.class_prompt.split()
    if not instance or not klass:
        return prompt
    while instance and klass and instance[0] == klass[0]:
        instance, klass = instance[1:], klass[1:]
    while instance and klass and instance[-1] == klass[-1]:
        instance, klass = instance[:-1], klass[:-1]
    if not instance:
        return prompt
    words = re.sub(rf"(?<!\w){re.escape(' '.join(instance))}(?!\w)", lambda _: " ".join(klass), prompt)
    return " ".join(words.split())


def epoch_order(count: int, batch_size: int, seed: int, step: int) -> list[int]:
    """Indices of the batch at `step`: every example once an epoch, in an order that only seed and epoch decide."""
    positions = range(step * batch_size, (step + 1) * batch_size)
    orders = {
        epoch: torch.randperm(count, generator=seeded_generator(seed, "order", epoch)).tolist()
        for epoch in {position // count for position in positions}
    }
    return [orders[position // count][position % count] for position in positions]


def _with_text(base: Base, latents: torch.Tensor, prompts: Sequence[str]) -> Examples:
    distinct = list(dict.fromkeys(prompts))
    embeddings = encode_prompts(base, distinct)
    return Examples(latents.float(), embeddings[[distinct.index(prompt) for prompt in prompts]])
