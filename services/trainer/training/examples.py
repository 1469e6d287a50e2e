"""Training examples: each image once through the VAE, in all the variants that its steps may ask for.

A variant is a crop and perhaps a mirror image. Variants are drawn once from the job's seed and cached by content,
across jobs too, so the VAE never runs during training.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageOps

from atelier.diffusion.base import Base
from services.trainer.images import open_mask, open_upright
from services.trainer.methods.base import Concept, TrainingImage, TrainingJob
from services.trainer.training.cache import TensorCache
from services.trainer.training.config import TrainingConfig
from services.trainer.training.geometry import Size, buckets, choose_bucket, fit, latent_mask, random_position
from services.trainer.training.noise import seeded_generator

# Crops of an image that a job with random crops sees.
_RANDOM_CROPS = 8
# Sides of buckets, in pixels, of models that draw at least the large size: few buckets make full batches.
_BUCKET_STEP, _LARGE_SIZE = 64, 512
_MAX_CACHE_BYTES = 512 * 1024 * 1024
_latents = TensorCache(max_bytes=_MAX_CACHE_BYTES)

# Where the crop is, and whether it is mirrored.
Variant = tuple[tuple[float, float], bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """An image to learn from, in V variants, float32 on the device."""

    prompt: str
    latents: torch.Tensor
    """[V, channels, height, width]."""
    sizes: torch.Tensor
    """[V, 6], SDXL's size conditions."""
    masks: torch.Tensor | None = None
    """[V, height, width], how much each latent's loss counts."""


def instance_examples(base: Base, job: TrainingJob) -> list[Example]:
    """An example for each image of each concept and each of its repeats.

    Raises:
        InvalidArgumentError: an image that is not allowed or cannot be decoded; the message names it.
    """
    encode = _Encoder(base, job.config)
    return [
        example
        for concept in job.concepts
        for image in concept.images
        for example in [encode(concept, image)] * concept.repeats
    ]


def load_squares(job: TrainingJob) -> torch.Tensor:
    """The job's images, upright, cropped to the central square: uint8 [N, resolution, resolution, 3], for scores."""
    size = (job.config.resolution, job.config.resolution)
    squares = (ImageOps.fit(_opened(image), size, Image.Resampling.LANCZOS) for image in job.images)
    return torch.stack([torch.from_numpy(np.array(square)) for square in squares])


class _Encoder:
    """Makes examples of images, for one job."""

    def __init__(self, base: Base, config: TrainingConfig) -> None:
        self._base, self._config = base, config
        square = [(config.resolution, config.resolution)]
        multiple = base.size_factor if base.default_size < _LARGE_SIZE else max(_BUCKET_STEP, base.size_factor)
        self._buckets = buckets(config.resolution, multiple) if config.aspect_ratio_buckets else square

    def __call__(self, concept: Concept, image: TrainingImage) -> Example:
        opened = _opened(image)
        size = choose_bucket(*opened.size, self._buckets)
        variants = list(self._variants(image))
        fitted = [fit(opened, size, position=position, flip=flip) for position, flip in variants]
        latents = self._encoded([each for each, _ in fitted], image, size, variants)
        sizes = torch.tensor([conditions for _, conditions in fitted], dtype=torch.float32, device=self._base.device)
        return Example(
            prompt=image.caption or concept.instance_prompt,
            latents=latents,
            sizes=sizes,
            masks=self._masks(image, opened, size, variants),
        )

    def _variants(self, image: TrainingImage) -> Iterator[Variant]:
        config = self._config
        generator = seeded_generator(config.seed, f"crops of {image.path}", 0)
        positions = [random_position(generator) for _ in range(_RANDOM_CROPS)] if config.random_crop else [(0.5, 0.5)]
        for position in positions:
            yield position, False
            if config.random_flip:
                yield position, True

    def _encoded(
        self, images: list[Image.Image], image: TrainingImage, size: Size, variants: list[Variant]
    ) -> torch.Tensor:
        content = hashlib.sha256(image.contents).hexdigest()
        key = (self._base.digest, str(self._base.dtype), content, size, tuple(variants))
        latents = _latents.get(key)
        if latents is None:
            pixels = torch.stack([torch.from_numpy(np.array(each)) for each in images])
            latents = self._base.encode_images(pixels).float()
            _latents.put(key, latents)
        return latents.to(self._base.device)

    def _masks(
        self, image: TrainingImage, opened: Image.Image, size: Size, variants: list[Variant]
    ) -> torch.Tensor | None:
        outside = self._config.unmasked_weight
        if image.mask is None or outside == 1:
            return None
        mask = open_mask(io.BytesIO(image.mask), "job.dataset", f"mask of {image.path}", size=opened.size)
        _, height, width = self._base.latent_shape(*size)
        fitted = [fit(mask, size, position=p, flip=flip, resampling=Image.Resampling.BOX)[0] for p, flip in variants]
        masks = torch.stack([latent_mask(each, height, width) for each in fitted])
        return (outside + (1 - outside) * masks).to(self._base.device)


def _opened(image: TrainingImage) -> Image.Image:
    return open_upright(io.BytesIO(image.contents), "job.dataset", image.path)
