"""DVAR stops where a loss has settled, not before, and not otherwise after an interruption."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable

import numpy as np
import pytest

from services.trainer.training.early_stopping import (
    DREAMBOOTH,
    TEXTUAL_INVERSION,
    LossVarianceConfig,
    LossVarianceStop,
)

Loss = Callable[[int], float]


def first_stop(stop: LossVarianceStop, losses: Iterable[float]) -> int | None:
    return next((i for i, loss in enumerate(losses, start=1) if stop.update(loss)), None)


def settling(tau: float) -> Loss:
    """Falls from 1.1 towards 0.1, with the small unrest of a run's weights."""
    unrest = np.random.default_rng(0).normal(scale=0.01, size=10_000)
    return lambda step: 0.1 + math.exp(-step / tau) + float(unrest[step])


def test_it_stops_once_the_loss_has_settled() -> None:
    loss = settling(tau=100)
    stop = LossVarianceStop(TEXTUAL_INVERSION, total_steps=6100)
    step = first_stop(stop, map(loss, range(6100)))
    assert step is not None
    # The window is full at 310; the loss is within 2 % of where it ends after 400.
    assert 310 < step < 500
    assert stop.variance_ratio() < 0.15


def test_a_later_fall_is_waited_for() -> None:
    early = first_stop(LossVarianceStop(DREAMBOOTH, total_steps=3000), map(settling(tau=50), range(3000)))
    late = first_stop(LossVarianceStop(DREAMBOOTH, total_steps=3000), map(settling(tau=600), range(3000)))
    assert early is not None
    assert late is not None
    assert early < late


@pytest.mark.parametrize(
    "loss",
    [
        pytest.param(lambda step: 1 - step / 1000, id="falling"),
        pytest.param(lambda step: 0.5, id="nothing learnt"),
        pytest.param(lambda step: 0.5 + 0.1 * math.sin(step / 7), id="never at rest"),
    ],
)
def test_it_does_not_stop_while_the_loss_moves_or_has_never_moved(loss: Loss) -> None:
    stop = LossVarianceStop(LossVarianceConfig(window_steps=300), total_steps=1000)
    # The ratio of a straight line is (window / length) squared, so only one of 2.6 windows is taken for settled.
    assert first_stop(stop, map(loss, range(750))) is None


def test_it_speaks_no_earlier_than_its_window_is_full() -> None:
    stop = LossVarianceStop(LossVarianceConfig(window_steps=20), total_steps=1000)
    assert first_stop(stop, [1.0] + [0.0] * 19) is None
    assert stop.update(0.0)


def test_seldom_evaluations_stop_at_about_the_same_step() -> None:
    loss = settling(tau=100)
    every = first_stop(LossVarianceStop(TEXTUAL_INVERSION, total_steps=6100), map(loss, range(6100)))
    tenth = LossVarianceStop(TEXTUAL_INVERSION, total_steps=6100, interval_steps=10)
    evaluations = first_stop(tenth, map(loss, range(0, 6100, 10)))
    assert every is not None
    assert evaluations is not None
    assert evaluations * 10 == pytest.approx(every, abs=50)


def test_a_short_run_has_a_window_that_it_outgrows() -> None:
    stop = LossVarianceStop(DREAMBOOTH, total_steps=100)
    assert first_stop(stop, [1.0, 0.5] + [0.1] * 98) == 45


def test_a_resumed_run_stops_at_the_same_step() -> None:
    losses = [settling(tau=100)(step) for step in range(6100)]
    uninterrupted = LossVarianceStop(TEXTUAL_INVERSION, total_steps=6100)
    step = first_stop(uninterrupted, losses)
    before, after = (LossVarianceStop(TEXTUAL_INVERSION, total_steps=6100) for _ in range(2))
    assert first_stop(before, losses[:200]) is None
    after.restore(json.loads(json.dumps(before.state())))
    resumed = first_stop(after, losses[200:])
    assert resumed is not None
    assert resumed + 200 == step
    assert after.variance_ratio() == uninterrupted.variance_ratio()


@pytest.mark.parametrize("wrong", [{"window_steps": 1}, {"threshold": 0.0}, {"threshold": 1.0}])
def test_constants_that_would_stop_always_or_never_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(AssertionError):
        LossVarianceConfig(**wrong)  # type: ignore[arg-type]  # one of the two each time
