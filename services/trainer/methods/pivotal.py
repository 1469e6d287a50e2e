"""Pivotal tuning (Roich et al. 2022; for diffusion: cloneofsimo's PTI, cog-sdxl): textual inversion, then LoRA.

Before the pivot the new words' vectors learn; from it on they stay exactly as they are, and low-rank updates learn on
top of them. The pivot is a step, not an epoch, and all of it is in every checkpoint.
"""

from __future__ import annotations

from atelier.diffusion.base import Base
from services.trainer.methods.base import TrainingJob
from services.trainer.training.config import pivot_step
from services.trainer.training.run import TrainingMethod
from services.trainer.training.student import Student
from services.trainer.training.trainables import LowRankUpdates, WordVectors


def _make_student(job: TrainingJob, base: Base) -> Student:
    config, pivot = job.config, pivot_step(job.config)
    tokens = [concept.placeholder_token for concept in job.concepts]
    vectors = WordVectors(base, config, num_words=len(tokens), steps=range(pivot))
    updates = LowRankUpdates(
        base.denoiser_name,
        base.denoiser,
        config,
        learning_rate=config.learning_rate,
        steps=range(pivot, config.max_train_steps),
    )
    return Student(base, [vectors, updates], dict.fromkeys(tokens, config.num_vectors))


METHOD = TrainingMethod(title="Pivotal tuning", make_student=_make_student, preserves_prior=True)
