"""DreamBooth (Ruiz et al. 2023): all weights of the denoiser, and of the text encoders if asked for, learn the subject.

The result is a model of its own; beside it comes a low-rank update that is as close to it as such an update can be.
"""

from __future__ import annotations

from atelier.diffusion.base import Base
from services.trainer.methods.base import TrainingJob
from services.trainer.training.run import TrainingMethod
from services.trainer.training.student import Student
from services.trainer.training.trainables import FullWeights, component_rates


def _make_student(job: TrainingJob, base: Base) -> Student:
    config, steps = job.config, range(job.config.max_train_steps)
    rates = component_rates(base, config)
    models = base.components()
    weights = [FullWeights(name, models[name], config, learning_rate=rate, steps=steps) for name, rate in rates.items()]
    return Student(base, weights)


METHOD = TrainingMethod(title="DreamBooth", make_student=_make_student, preserves_prior=True)
