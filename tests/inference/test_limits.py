"""What the services accept fits together: what is trained and published can be served."""

from __future__ import annotations

from dataclasses import fields

from services.inference.engine import EngineConfig
from services.inference.main import main
from services.trainer.training.config import TrainingConfig


def test_every_rank_that_can_be_trained_fits_a_slot() -> None:
    (rank,) = (field for field in fields(TrainingConfig) if field.name == "rank")
    (option,) = (option for option in main.params if option.name == "max_rank")
    assert option.default == EngineConfig().max_rank
    assert EngineConfig().max_rank >= rank.metadata["high"]
