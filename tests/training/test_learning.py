"""Every method learns: the loss on fixed images, noise and timesteps falls."""

from __future__ import annotations

from typing import Any

import pytest

from atelier.diffusion.base import Base
from tests.harness.training import make_job, training

_CASES: dict[str, tuple[str, dict[str, Any], float]] = {
    "dreambooth": ("dreambooth", {"learning_rate": 3e-4}, 0.8),
    "dreambooth-lora": ("dreambooth-lora", {"learning_rate": 2e-3}, 0.8),
    "lora": ("lora", {"learning_rate": 2e-3}, 0.8),
    "lora with DoRA and a text encoder": (
        "lora",
        {"learning_rate": 2e-3, "use_dora": True, "train_text_encoder": True, "text_encoder_learning_rate": 1e-3},
        0.8,
    ),
    "pivotal": ("pivotal", {"learning_rate": 2e-3, "embedding_learning_rate": 0.02}, 0.8),
    "textual-inversion": ("textual-inversion", {"embedding_learning_rate": 0.02}, 0.95),
    "adafactor": ("lora", {"optimizer": "adafactor", "learning_rate": 2e-3}, 0.8),
    # Prodigy begins with a millionth of a rate, and needs about a hundred steps to find its own.
    "prodigy": (
        "lora",
        {"optimizer": "prodigy", "max_train_steps": 110, "lr_scheduler": "constant", "train_batch_size": 1},
        0.8,
    ),
}


@pytest.mark.parametrize("case", _CASES)
def test_the_loss_on_fixed_noise_falls(case: str, base: Base) -> None:
    method, config, share = _CASES[case]
    job = make_job(method, base, **{"max_train_steps": 24, "snr_gamma": 0.0} | config)
    with training(job, base) as trained:
        before = trained.fixed_loss()
        trained.take_steps(job.config.max_train_steps)
        assert trained.fixed_loss() < share * before
