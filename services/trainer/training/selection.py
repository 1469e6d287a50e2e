"""Which of a run's validated weights are published as its best.

More steps make the subject truer and, past some point, the prompt less heard: backgrounds of the training images creep
in and the class turns into the subject. So the best weights are those that draw the truest subject among those that
still follow the prompt.
"""

from __future__ import annotations

from collections.abc import Mapping

from services.trainer.methods.base import Scores

# Share of the base model's CLIP-T below which a prompt no longer counts as followed.
_FOLLOWS = 0.9
# Scores count as they are reported; what lies beyond is below the noise of a few validation images.
_DECIMALS = 3


def best_step(base: Scores, by_step: Mapping[int, Scores]) -> int:
    """The step with the best scores.

    It is the one with the highest subject fidelity (DINO where all have it, else CLIP-I) among the steps whose CLIP-T
    is at least 0.9 of the base model's. If no step's is, it is the one with the highest CLIP-T. Of steps that are equal
    to three decimals it is the earliest, which had the least time to harm what it was not taught.

    Args:
        base: the bare base model's scores.
        by_step: scores of the same prompts and seeds by the step of the weights; at least one.
    """
    assert by_step, "at least one validation"
    floor = base.clip_t - (1 - _FOLLOWS) * abs(base.clip_t)
    following = [step for step in by_step if by_step[step].clip_t >= floor]
    if not following:
        return _highest({step: scores.clip_t for step, scores in by_step.items()})
    dino = {step: score for step in following if (score := by_step[step].dino) is not None}
    return _highest(dino if len(dino) == len(following) else {step: by_step[step].clip_i for step in following})


def _highest(values: Mapping[int, float]) -> int:
    return max(sorted(values), key=lambda step: round(values[step], _DECIMALS))
