"""Students whose denoiser, and text encoders if asked for, get low-rank updates."""

from __future__ import annotations

from atelier.diffusion.base import Base
from services.trainer.methods.base import TrainingJob
from services.trainer.training.student import Student
from services.trainer.training.trainables import LowRankUpdates, component_rates


def low_rank_student(job: TrainingJob, base: Base) -> Student:
    """All updates learn in all steps."""
    config, steps = job.config, range(job.config.max_train_steps)
    rates = component_rates(base, config)
    models = base.components()
    return Student(
        base,
        (LowRankUpdates(name, models[name], config, learning_rate=rate, steps=steps) for name, rate in rates.items()),
    )
