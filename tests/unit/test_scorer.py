"""The scorer tells right from wrong, and rows do not depend on their neighbours."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from atelier.diffusion.base import Base
from atelier.diffusion.scorer import ClipScorer
from atelier.errors import InvalidArgumentError

_ROOT = Path(__file__).parents[2]
_EXAMPLES = _ROOT / "examples" / "fx-style"


@pytest.fixture(scope="module")
def scorer(base: Base) -> ClipScorer:
    return ClipScorer(_ROOT / "models" / "emoji-clip", base)


def load(folder: Path) -> torch.Tensor:
    files = sorted(folder.glob("*.png"))
    return torch.stack([torch.from_numpy(np.array(Image.open(file).convert("RGB"))) for file in files])


def test_the_training_images_of_one_subject_are_alike(scorer: ClipScorer) -> None:
    foxes, others = load(_ROOT / "examples" / "fox"), load(_EXAMPLES)
    cosines = scorer.embed_images(foxes) @ scorer.embed_images(foxes).T
    assert cosines.diagonal().allclose(torch.ones(5), atol=1e-5)
    assert ((cosines.sum() - 5) / 20).item() == pytest.approx(0.687, abs=0.005)
    assert scorer.clip_i(others, foxes).mean() < 0.3


def test_a_scorer_for_another_text_encoder_is_refused(base: Base, tmp_path: Path) -> None:
    shutil.copytree(_ROOT / "models" / "emoji-clip", tmp_path / "other")
    safetensors.torch.save_file({"weight": torch.zeros(256, 768)}, tmp_path / "other" / "text_projection.safetensors")
    with pytest.raises(InvalidArgumentError, match="768"):
        ClipScorer(tmp_path / "other", base)


def test_a_background_s_colour_is_read_from_the_prompt(scorer: ClipScorer) -> None:
    captions = [json.loads(line)["text"] for line in (_ROOT / "examples/fox/metadata.jsonl").read_text().splitlines()]
    prompts = [caption.replace("sks fox", "fox face") for caption in captions]
    similarity = scorer.embed_images(load(_ROOT / "examples" / "fox")) @ scorer.embed_prompts(prompts).T
    assert similarity.argmax(dim=1).tolist() == [0, 1, 2, 3, 4]


def test_scores_are_per_row_and_of_any_size(scorer: ClipScorer) -> None:
    images = load(_ROOT / "examples" / "fox")
    prompts = ["a fox face", "a car", "a fox face", "a tree", "a car"]
    scores = scorer.clip_t(images, prompts)
    assert scores.shape == (5,)
    torch.testing.assert_close(scorer.clip_t(images[3:4], prompts[3:4]), scores[3:4], rtol=0, atol=1e-5)
    larger = images.repeat_interleave(2, dim=1).repeat_interleave(2, dim=2)
    torch.testing.assert_close(scorer.clip_t(larger, prompts), scores, rtol=0, atol=0.05)
