from __future__ import annotations

from pathlib import Path

import pytest

MODELS = Path(__file__).parents[2] / "models"


@pytest.fixture(scope="session")
def base():  # type: ignore[no-untyped-def]  # torch is imported only for the tests that need it
    """The embedded base model, in float32 on the CPU. Shared: whoever hooks its layers unhooks them."""
    import torch

    from atelier.diffusion.base import load_base

    torch.set_num_threads(1)
    return load_base(MODELS / "emoji-sd", device=torch.device("cpu"), dtype=torch.float32)
