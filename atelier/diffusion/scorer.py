"""CLIP scores of images (Radford et al. 2021): to reference images (CLIP-I) and to prompts (CLIP-T).

A scorer is a folder with a `CLIPVisionModelWithProjection` and, in `text_projection.safetensors`, the matrix `weight`
that takes the base model's own pooled text embedding into the same space. It wants pixels in [-1, 1].
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch.nn import functional as F
from transformers import CLIPVisionModelWithProjection

from atelier.diffusion.base import Base
from atelier.errors import InvalidArgumentError

_CHUNK = 64


class ClipScorer:
    """Scores with the vision tower of a scorer folder and the text tower of a base model, in float32.

    Raises:
        InvalidArgumentError: the scorer was trained with a text encoder of another width than the base's.
    """

    def __init__(self, path: Path, base: Base) -> None:
        self._base = base
        vision: Any = CLIPVisionModelWithProjection.from_pretrained(
            path, dtype=torch.float32, use_safetensors=True, local_files_only=True
        )
        self._vision = vision.to(base.device).eval().requires_grad_(False)
        projection = safetensors.torch.load_file(path / "text_projection.safetensors")
        self._projection = next(iter(projection.values())).to(base.device, torch.float32)
        width, own_width = base.text_encoder.config.hidden_size, self._projection.shape[1]
        if width != own_width:
            raise InvalidArgumentError(
                "scorer", f"{path.name} is for text encoders of width {own_width}; {base.name}'s has {width}"
            )

    def clip_i(self, images: torch.Tensor, references: torch.Tensor) -> torch.Tensor:
        """Each image's mean cosine to the references, [N]; images are uint8 [N, height, width, 3]."""
        return (self.embed_images(images) @ self.embed_images(references).T).mean(dim=1)

    def clip_t(self, images: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        """The cosine of each image to its own prompt, [N]."""
        return (self.embed_images(images) * self.embed_prompts(prompts)).sum(dim=1)

    @torch.no_grad()
    def embed_images(self, images: torch.Tensor) -> torch.Tensor:
        """Unit vectors [N, width] on the CPU."""
        side: int = self._vision.config.image_size
        vectors = []
        for chunk in images.split(_CHUNK):
            pixels = chunk.permute(0, 3, 1, 2).to(self._base.device, torch.float32) / 127.5 - 1
            if pixels.shape[2:] != (side, side):
                pixels = F.interpolate(pixels, (side, side), mode="bicubic", antialias=True, align_corners=False)
            vectors.append(self._vision(pixels).image_embeds)
        return F.normalize(torch.cat(vectors), dim=1).cpu()

    @torch.no_grad()
    def embed_prompts(self, prompts: Sequence[str]) -> torch.Tensor:
        """Unit vectors [N, width] on the CPU; each distinct prompt is encoded once."""
        distinct = list(dict.fromkeys(prompts))
        tokenizer = self._base.tokenizer
        tokens = tokenizer(
            distinct, padding="max_length", max_length=tokenizer.model_max_length, truncation=True, return_tensors="pt"
        )
        pooled = self._base.text_encoder(tokens.input_ids.to(self._base.device)).pooler_output
        vectors = F.normalize(pooled.float() @ self._projection.T, dim=1).cpu()
        return vectors[[distinct.index(prompt) for prompt in prompts]]
