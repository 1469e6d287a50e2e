"""CLIP scores of images (Radford et al. 2021): to reference images (CLIP-I) and to prompts (CLIP-T).

A scorer's folder holds one of two things:

- a whole CLIP, as transformers saves a `CLIPModel`, with its tokenizer and `preprocessor_config.json`;
- the half of one that shares a base model's text encoder: a `CLIPVisionModelWithProjection` that wants pixels in
  [-1, 1] and, in `text_projection.safetensors`, the matrix `weight` that takes the base's own pooled text embedding
  into the same space.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import safetensors.torch
import torch
from torch.nn import functional as F
from transformers import CLIPModel, CLIPTokenizer, CLIPVisionModelWithProjection

from atelier.diffusion.base import Base
from atelier.diffusion.image_features import (
    ImageTransform,
    check_side,
    load_frozen,
    model_type,
    refuse,
    unit_vectors,
)

_FIELD = "scorer"
_PROJECTION_FILE = "text_projection.safetensors"


class ClipScorer:
    """Scores with the CLIP in a folder, in float32 on the base's device.

    Raises:
        InvalidArgumentError: the folder holds neither form whole, or half a CLIP of a text encoder of another width
            than the base's.
    """

    def __init__(self, path: Path, base: Base) -> None:
        self._device = base.device
        is_half = (path / _PROJECTION_FILE).is_file()
        self._clip: _Clip = _HalfClip(path, base) if is_half else _WholeClip(path, base.device)

    def clip_i(self, images: torch.Tensor, references: torch.Tensor) -> torch.Tensor:
        """Each image's mean cosine to the references, [N]; images are uint8 [N, height, width, 3]."""
        return (self.embed_images(images) @ self.embed_images(references).T).mean(dim=1)

    def clip_t(self, images: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        """The cosine of each image to its own prompt, [N]."""
        return (self.embed_images(images) * self.embed_prompts(prompts)).sum(dim=1)

    def embed_images(self, images: torch.Tensor) -> torch.Tensor:
        """Unit vectors [N, width] on the CPU of images, uint8 [N, height, width, 3]."""
        return unit_vectors(images, self._clip.transform, self._clip.image_features, self._device)

    @torch.no_grad()
    def embed_prompts(self, prompts: Sequence[str]) -> torch.Tensor:
        """Unit vectors [N, width] on the CPU; each distinct prompt is encoded once."""
        distinct = list(dict.fromkeys(prompts))
        tokenizer = self._clip.tokenizer
        tokens = tokenizer(
            distinct, padding="max_length", max_length=tokenizer.model_max_length, truncation=True, return_tensors="pt"
        )
        vectors = F.normalize(self._clip.text_features(tokens.input_ids.to(self._device)), dim=1).cpu()
        return vectors[[distinct.index(prompt) for prompt in prompts]]


class _Clip(Protocol):
    """The two halves of a CLIP: features in one space, not yet normalized."""

    transform: ImageTransform
    tokenizer: CLIPTokenizer

    def image_features(self, pixels: torch.Tensor) -> torch.Tensor: ...

    def text_features(self, token_ids: torch.Tensor) -> torch.Tensor: ...


class _HalfClip:
    """A vision tower; the text tower is the base's."""

    def __init__(self, path: Path, base: Base) -> None:
        tower = base.towers[0]
        self.tokenizer, self._text_model = tower.tokenizer, tower.model
        self._vision = load_frozen(CLIPVisionModelWithProjection, path, base.device, _FIELD)
        projection = safetensors.torch.load_file(path / _PROJECTION_FILE)
        self._projection = next(iter(projection.values())).to(base.device, torch.float32)
        width, own_width = self._text_model.config.hidden_size, self._projection.shape[1]
        if width != own_width:
            refuse(_FIELD, f"{path.name} is for text encoders of width {own_width}; {base.name}'s has {width}")
        side: int = self._vision.config.image_size
        self.transform = ImageTransform(height=side, width=side, mean=(0.5,) * 3, std=(0.5,) * 3)

    def image_features(self, pixels: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = self._vision(pixels).image_embeds
        return features

    def text_features(self, token_ids: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = self._text_model(token_ids).pooler_output.float() @ self._projection.T
        return features


class _WholeClip:
    """Both towers of a `CLIPModel`, with the tokenizer and the preprocessing that it was trained with."""

    def __init__(self, path: Path, device: torch.device) -> None:
        if (found := model_type(path, _FIELD)) != "clip":
            refuse(_FIELD, f"{path.name} holds a {found} model; allowed is a clip, or half a clip with a base's text")
        self.transform = ImageTransform.from_folder(path, _FIELD)
        self._model = load_frozen(CLIPModel, path, device, _FIELD)
        check_side(path, self.transform, self._model.config.vision_config.image_size, _FIELD)
        self.tokenizer = CLIPTokenizer.from_pretrained(path, local_files_only=True)

    def image_features(self, pixels: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = self._model.visual_projection(self._model.vision_model(pixels).pooler_output)
        return features

    def text_features(self, token_ids: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = self._model.text_projection(self._model.text_model(token_ids).pooler_output)
        return features
