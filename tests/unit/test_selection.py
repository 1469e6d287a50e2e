"""The best weights draw the truest subject among those that follow the prompt."""

from __future__ import annotations

import pytest

from services.trainer.methods.base import Scores
from services.trainer.training.selection import best_step

BASE = Scores(clip_i=0.5, clip_t=0.30, nearest=0.6)


def scores(clip_i: float, clip_t: float, dino: float | None = None) -> Scores:
    return Scores(clip_i=clip_i, clip_t=clip_t, nearest=clip_i, dino=dino)


def test_the_truest_subject_wins_among_those_that_follow_the_prompt() -> None:
    by_step = {100: scores(0.6, 0.30), 200: scores(0.7, 0.28), 300: scores(0.9, 0.20)}
    assert best_step(BASE, by_step) == 200


def test_a_tenth_less_of_the_base_s_prompt_fidelity_still_follows() -> None:
    assert best_step(BASE, {100: scores(0.6, 0.30), 200: scores(0.7, 0.2701)}) == 200
    assert best_step(BASE, {100: scores(0.6, 0.30), 200: scores(0.7, 0.2699)}) == 100


def test_dino_decides_where_all_have_it() -> None:
    assert best_step(BASE, {100: scores(0.7, 0.3, dino=0.4), 200: scores(0.6, 0.3, dino=0.5)}) == 200
    assert best_step(BASE, {100: scores(0.7, 0.3, dino=0.4), 200: scores(0.6, 0.3)}) == 100


def test_where_no_step_follows_the_prompt_the_one_that_heeds_it_most_is_best() -> None:
    assert best_step(BASE, {100: scores(0.6, 0.1), 200: scores(0.7, 0.2), 300: scores(0.9, 0.15)}) == 200


@pytest.mark.parametrize("later", [0.70, 0.7004, 0.6996])
def test_of_equals_the_earlier_wins_in_whatever_order_they_come(later: float) -> None:
    by_step = {200: scores(later, 0.3), 100: scores(0.70, 0.3)}
    assert best_step(BASE, by_step) == 100
    assert best_step(BASE, dict(reversed(by_step.items()))) == 100


def test_a_base_without_any_prompt_fidelity_excludes_none_that_is_as_good() -> None:
    base = Scores(clip_i=0.5, clip_t=-0.02, nearest=0.6)
    assert best_step(base, {100: scores(0.6, 0.01), 200: scores(0.7, -0.02)}) == 200
