"""Textual inversion (Gal et al. 2022): vectors for new words, in every text encoder of the base, and nothing else."""

from __future__ import annotations

from atelier.diffusion.base import Base
from services.trainer.methods.base import TrainingJob
from services.trainer.training.run import TrainingMethod
from services.trainer.training.student import Student
from services.trainer.training.trainables import WordVectors


def _make_student(job: TrainingJob, base: Base) -> Student:
    tokens = [concept.placeholder_token for concept in job.concepts]
    vectors = WordVectors(base, job.config, num_words=len(tokens), steps=range(job.config.max_train_steps))
    return Student(base, [vectors], dict.fromkeys(tokens, job.config.num_vectors))


METHOD = TrainingMethod(title="Textual inversion", make_student=_make_student, preserves_prior=False)
