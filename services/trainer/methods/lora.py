"""LoRA (Hu et al. 2021) from captioned images: a style or a domain, with nothing held back."""

from __future__ import annotations

from services.trainer.training.low_rank import low_rank_student
from services.trainer.training.run import TrainingMethod

METHOD = TrainingMethod(title="LoRA", make_student=low_rank_student, preserves_prior=False)
