"""The best weights draw a true subject that still does what the prompt says."""

from __future__ import annotations

import pytest

from services.trainer.methods.base import Scores
from services.trainer.training.selection import best_step


def scores(clip_i: float, clip_t: float, dino: float | None = None) -> Scores:
    return Scores(clip_i=clip_i, clip_t=clip_t, nearest=clip_i, dino=dino)


def test_neither_score_alone_decides() -> None:
    by_step = {100: scores(0.4, 0.80), 200: scores(0.6, 0.70), 300: scores(0.7, 0.40)}
    assert best_step(by_step) == 200


def test_dino_decides_where_all_have_it() -> None:
    assert best_step({100: scores(0.7, 0.3, dino=0.4), 200: scores(0.6, 0.3, dino=0.5)}) == 200
    assert best_step({100: scores(0.7, 0.3, dino=0.4), 200: scores(0.6, 0.3)}) == 100


def test_a_negative_cosine_counts_as_none_and_two_of_them_do_not_make_a_product() -> None:
    assert best_step({100: scores(-0.9, -0.9), 200: scores(0.1, 0.1)}) == 200


@pytest.mark.parametrize("later", [0.70, 0.7004, 0.6996])
def test_of_equals_the_earlier_wins_in_whatever_order_they_come(later: float) -> None:
    by_step = {200: scores(later, 0.3), 100: scores(0.70, 0.3)}
    assert best_step(by_step) == 100
    assert best_step(dict(reversed(by_step.items()))) == 100
