"""Which of a run's validated weights are published as its best.

More steps make the subject truer and, past some point, the prompt less heard: backgrounds of the training images creep
in and the class turns into the subject. Neither score alone knows when to stop, and neither may pay for the other
without limit; the base model's CLIP-T is no bar, since its own words describe best what it draws by itself.
"""

from __future__ import annotations

from collections.abc import Mapping

from services.trainer.methods.base import Scores

# Scores count as they are reported; what lies beyond is below the noise of a few validation images.
_DECIMALS = 3


def best_step(by_step: Mapping[int, Scores]) -> int:
    """The step with the highest product of subject fidelity and prompt fidelity (CLIP-T).

    Subject fidelity is DINO where all have it, else CLIP-I; a negative cosine counts as none. Of steps that are equal
    to three decimals it is the earliest, which had the least time to harm what it was not taught.

    Args:
        by_step: scores of the same prompts and seeds by the step of the weights; at least one.
    """
    assert by_step, "at least one validation"
    has_dino = all(scores.dino is not None for scores in by_step.values())
    products = {step: _product(scores, has_dino=has_dino) for step, scores in by_step.items()}
    return max(sorted(products), key=lambda step: round(products[step], _DECIMALS))


def _product(scores: Scores, *, has_dino: bool) -> float:
    fidelity = scores.dino if has_dino and scores.dino is not None else scores.clip_i
    return max(fidelity, 0.0) * max(scores.clip_t, 0.0)
