"""Paired bootstrap intervals (Efron 1979): prompts and training seeds are resampled, together for both of a pair."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_RESAMPLES, _SEED = 4000, 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A mean and its 95 % interval."""

    mean: float
    low: float
    high: float


def paired_interval(ours: NDArray[np.float64], theirs: NDArray[np.float64]) -> Interval:
    """Of the mean difference; both are [training seeds, prompts], row by row and column by column the same ones.

    With one seed the interval says nothing about other seeds.
    """
    if ours.shape != theirs.shape or ours.ndim != 2:
        raise ValueError(f"the shapes are {ours.shape} and {theirs.shape}; the same [seeds, prompts] is wanted")
    difference = ours - theirs
    generator = np.random.default_rng(_SEED)
    seeds = generator.integers(difference.shape[0], size=(_RESAMPLES, difference.shape[0]))
    prompts = generator.integers(difference.shape[1], size=(_RESAMPLES, difference.shape[1]))
    means = difference[seeds[:, :, None], prompts[:, None, :]].mean(axis=(1, 2))
    low, high = np.percentile(means, (2.5, 97.5))
    return Interval(mean=float(difference.mean()), low=float(low), high=float(high))
