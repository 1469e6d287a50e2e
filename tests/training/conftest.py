from __future__ import annotations

from pathlib import Path

import pytest
import torch

from atelier.diffusion.base import Base, load_base
from atelier.diffusion.scorer import ClipScorer

MODELS = Path(__file__).parents[2] / "models"


@pytest.fixture(scope="session")
def base() -> Base:
    """The embedded base model, in float32 on the CPU. Shared: whoever hooks its layers unhooks them."""
    torch.set_num_threads(1)
    return load_base(MODELS / "emoji-sd", device=torch.device("cpu"), dtype=torch.float32)


@pytest.fixture(scope="session")
def scorer(base: Base) -> ClipScorer:
    return ClipScorer(MODELS / "emoji-clip", base)
