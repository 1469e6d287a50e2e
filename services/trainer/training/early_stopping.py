"""When to stop training: DVAR, the variance of the loss on fixed inputs.

Training loss tells nothing about convergence, since its noise and timesteps hide the trend. The loss on the same
images, captions, noise and timesteps every time does: it falls, and then it settles. DVAR (Voronov et al. 2023, "Is
This Loss Informative? Faster Text-to-Image Customization by Tracking Objective Dynamics", arXiv 2302.04841) stops once
the variance of the last evaluations is less than a fraction of the variance of all of them.
The rule only looks at that series: it does not know whether the loss settled low, or what the images look like.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True, kw_only=True)
class LossVarianceConfig:
    """The rule's constants; the defaults are the authors' for textual inversion."""

    window_steps: int = 310
    """The recent steps whose variance counts, at least 2."""
    threshold: float = 0.15
    """Stops when their variance is below this fraction of the whole run's. Above 0, below 1."""

    def __post_init__(self) -> None:
        assert self.window_steps >= 2, "a variance needs two values"
        assert 0 < self.threshold < 1, "the fraction is 1 while the window holds the whole run"


# The authors' constants, from the commands in the README of github.com/yandex-research/DVAR that reproduce the paper.
TEXTUAL_INVERSION = LossVarianceConfig()
DREAMBOOTH = LossVarianceConfig(window_steps=440, threshold=0.4)
# The authors' DreamBooth runs have 1,000 steps. In a run as short as the window the rule could never speak.
_MAX_WINDOW_SHARE = 0.44


class LossVarianceStop:
    """Is fed the loss on fixed inputs at a fixed interval, and says when it has settled.

    Args:
        config: the method's constants.
        total_steps: the steps of the run if nothing stops it; the window is at most 44 % of it.
        interval_steps: steps between evaluations; the authors evaluate at every step.
    """

    def __init__(self, config: LossVarianceConfig, *, total_steps: int, interval_steps: int = 1) -> None:
        steps = min(config.window_steps, _MAX_WINDOW_SHARE * total_steps)
        self._threshold = config.threshold
        self._window = max(2, math.ceil(steps / interval_steps))
        self._losses: list[float] = []

    def update(self, loss: float) -> bool:
        """Takes the next evaluation's loss; True when training is to stop."""
        self._losses.append(loss)
        return self.variance_ratio() < self._threshold

    def variance_ratio(self) -> float:
        """The window's variance over the whole run's; 1 while there are too few losses, or all are the same."""
        whole = np.var(self._losses) if len(self._losses) > self._window else 0.0
        return float(np.var(self._losses[-self._window :]) / whole) if whole > 0 else 1.0

    def state(self) -> list[float]:
        """All that `restore` needs: the losses so far."""
        return list(self._losses)

    def restore(self, losses: Sequence[float]) -> None:
        """Goes on where another one, of the same constants, was when it told its state."""
        self._losses = list(losses)
