"""DINO and DINOv2 folders give what transformers itself computes with them, cut to unit vectors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F
from transformers import Dinov2Config, Dinov2Model, ViTConfig, ViTModel
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from atelier.diffusion.dino import DinoScorer
from atelier.errors import InvalidArgumentError

_CPU = torch.device("cpu")
_LAYERS: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "patch_size": 8}


def vit(folder: Path) -> Any:
    """As DINO's: no pooling layer, and squashed to the model's square."""
    config = ViTConfig(**_LAYERS, intermediate_size=64, image_size=32)
    ViTModel(config, add_pooling_layer=False).save_pretrained(folder)
    processor = ViTImageProcessorPil(size={"height": 32, "width": 32}, image_mean=[0.485, 0.456, 0.406])
    processor.save_pretrained(folder)
    return processor


def dinov2(folder: Path) -> Any:
    """As DINOv2's: its own size is larger than that of its preprocessing."""
    Dinov2Model(Dinov2Config(**_LAYERS, image_size=64)).save_pretrained(folder)
    processor = BitImageProcessorPil(size={"shortest_edge": 36}, crop_size={"height": 32, "width": 32})
    processor.save_pretrained(folder)
    return processor


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    """Not square."""
    files = sorted((Path(__file__).parents[2] / "examples" / "fox").glob("*.png"))
    return torch.stack([torch.from_numpy(np.array(Image.open(file).convert("RGB"))[20:100]) for file in files])


@pytest.mark.parametrize(("make", "model_class"), [(vit, ViTModel), (dinov2, Dinov2Model)])
def test_embeddings_are_the_class_tokens(make: Any, model_class: Any, images: torch.Tensor, tmp_path: Path) -> None:
    torch.manual_seed(0)
    pixels = make(tmp_path)(list(images.numpy()), return_tensors="pt")
    with torch.no_grad():
        tokens = model_class.from_pretrained(tmp_path)(**pixels).last_hidden_state
    vectors = DinoScorer(tmp_path, _CPU).embed_images(images)
    assert vectors.shape == (5, 32)
    # The processor rounds its resized pixels to 8 bits.
    torch.testing.assert_close(vectors, F.normalize(tokens[:, 0], dim=1), rtol=0, atol=0.005)


def test_a_folder_of_another_model_is_refused(tmp_path: Path) -> None:
    vit(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_type": "swin"}))
    with pytest.raises(InvalidArgumentError, match=r"dino: .* swin model; allowed are vit"):
        DinoScorer(tmp_path, _CPU)


def test_preprocessing_for_another_size_is_refused_before_any_image_comes(tmp_path: Path) -> None:
    vit(tmp_path)
    ViTImageProcessorPil(size={"height": 48, "width": 48}).save_pretrained(tmp_path)
    with pytest.raises(InvalidArgumentError, match="48 x 48 pixels; its model takes 32 x 32"):
        DinoScorer(tmp_path, _CPU)
