"""CLIP scores of the demo's images, by the embedded base model's own CLIP."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers.utils import logging as transformers_logging

from atelier.diffusion.base import load_base
from atelier.diffusion.scorer import ClipScorer


@dataclass(frozen=True, slots=True, kw_only=True)
class MeanScores:
    """Mean cosines over all images of a model."""

    clip_i: float
    """To the training images."""
    clip_t: float
    """To the prompt, with the class in place of the subject's name."""


def score(
    models: Path,
    training: Sequence[Image.Image],
    prompts: Sequence[str],
    sets: Sequence[Sequence[Sequence[Image.Image]]],
) -> list[MeanScores]:
    """Scores each set of images [prompt][image] with the base and the scorer in the folder `models`."""
    transformers_logging.disable_progress_bar()
    base = load_base(models / "emoji-sd", device=torch.device("cpu"), dtype=torch.float32)
    scorer = ClipScorer(models / "emoji-clip", base)
    references = _pixels(training)
    scores = []
    for rows in sets:
        images = _pixels([image for row in rows for image in row])
        repeated = [prompt for prompt, row in zip(prompts, rows, strict=True) for _ in row]
        clip_i = scorer.clip_i(images, references).mean().item()
        clip_t = scorer.clip_t(images, repeated).mean().item()
        scores.append(MeanScores(clip_i=clip_i, clip_t=clip_t))
    return scores


def _pixels(images: Sequence[Image.Image]) -> torch.Tensor:
    """uint8 [N, height, width, 3]."""
    return torch.from_numpy(np.stack([np.asarray(image.convert("RGB")) for image in images]))
