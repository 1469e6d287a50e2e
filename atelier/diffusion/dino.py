"""DINO scores of images: how alike two are in features that were learnt without text (Caron et al. 2021).

They tell one subject from others of its class better than CLIP's do, which is why DreamBooth's authors prefer them
(Ruiz et al. 2023, section 4.2). Its published numbers are those of DINO ViT-S/16.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import Dinov2Model, ViTModel

from atelier.diffusion.image_features import (
    ImageTransform,
    check_side,
    load_frozen,
    model_type,
    refuse,
    unit_vectors,
)

_FIELD = "dino"


class DinoScorer:
    """The model in a transformers folder of DINO (a `ViTModel`) or DINOv2 (a `Dinov2Model`), in float32.

    Raises:
        InvalidArgumentError: the folder holds another model, or not the whole one.
    """

    def __init__(self, path: Path, device: torch.device) -> None:
        self._device = device
        self._transform = ImageTransform.from_folder(path, _FIELD)
        self._model: Any = _load(path, device)
        if isinstance(self._model, ViTModel):  # a Dinov2Model takes any size
            side: Any = self._model.config.image_size
            check_side(path, self._transform, side, _FIELD)

    def embed_images(self, images: torch.Tensor) -> torch.Tensor:
        """Unit vectors [N, width], of the class token, on the CPU; images are uint8 [N, height, width, 3]."""
        return unit_vectors(images, self._transform, self._class_token, self._device)

    def _class_token(self, pixels: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = self._model(pixels).last_hidden_state[:, 0]
        return features


def _load(path: Path, device: torch.device) -> Any:
    found = model_type(path, _FIELD)
    if found == "vit":
        return load_frozen(ViTModel, path, device, _FIELD, add_pooling_layer=False)  # DINO has no pooling layer
    if found == "dinov2":
        return load_frozen(Dinov2Model, path, device, _FIELD)
    refuse(_FIELD, f"{path.name} holds a {found} model; allowed are vit (DINO) and dinov2")
