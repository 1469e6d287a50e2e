"""DreamBooth-LoRA: a subject bound to a rare word (Ruiz et al. 2023) by low-rank updates (Hu et al. 2021).

The base model stays as it is; the job's slot is all that is trained, of the text encoders too if asked for. Prior
preservation draws images of the class with the bare base and holds the adapter to the base's own predictions on them,
with prompts of the class and of random words, so that neither the class nor its neighbours take on the subject's looks.
"""

from __future__ import annotations

from services.trainer.training.low_rank import low_rank_student
from services.trainer.training.run import TrainingMethod

METHOD = TrainingMethod(title="DreamBooth-LoRA", make_student=low_rank_student, preserves_prior=True)
