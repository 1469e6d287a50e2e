from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch

from atelier.diffusion.base import Base, load_base
from atelier.diffusion.sampler import SamplingConfig
from atelier.diffusion.scorer import ClipScorer
from services.trainer.training import evaluation
from services.trainer.training.evaluation import Scorers

MODELS = Path(__file__).parents[2] / "models"


@pytest.fixture(scope="session")
def base() -> Base:
    """The embedded base model, in float32 on the CPU. Shared: whoever hooks its layers unhooks them."""
    torch.set_num_threads(1)
    return load_base(MODELS / "emoji-sd", device=torch.device("cpu"), dtype=torch.float32)


@pytest.fixture(scope="session")
def scorers(base: Base) -> Scorers:
    return Scorers(clip=ClipScorer(MODELS / "emoji-clip", base))


@pytest.fixture(scope="session", autouse=True)
def few_denoising_steps() -> Iterator[None]:
    """Previews and evaluations are most of a small job's time: theirs are images of 4 steps here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluation, "SamplingConfig", partial(SamplingConfig, steps=4))
        yield
