"""Scores of vectors whose angles are known."""

from __future__ import annotations

import pytest
import torch

from atelier.diffusion.scores import div, mean_similarity, nearest, pres, prompt_similarity

EAST, NORTH, WEST = [1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]


def test_every_image_counts_with_every_reference() -> None:
    images, references = torch.tensor([EAST, NORTH]), torch.tensor([EAST, EAST, NORTH])
    assert mean_similarity(images, references) == pytest.approx(0.5)
    assert pres(torch.tensor([EAST, WEST]), torch.tensor([EAST])) == pytest.approx(0)


def test_an_image_counts_with_its_own_prompt_only() -> None:
    assert prompt_similarity(torch.tensor([EAST, NORTH]), torch.tensor([EAST, EAST])) == pytest.approx(0.5)
    with pytest.raises(AssertionError, match="one prompt"):
        prompt_similarity(torch.tensor([EAST, NORTH]), torch.tensor([EAST]))


def test_a_copy_of_one_reference_is_memorized_however_unlike_the_others() -> None:
    copies, references = torch.tensor([EAST, NORTH]), torch.tensor([EAST, NORTH, WEST])
    assert nearest(copies, references) == pytest.approx(1)
    assert mean_similarity(copies, references) < 0.3
    assert nearest(torch.tensor([EAST, WEST]), torch.tensor([EAST])) == pytest.approx(0)


def test_diversity_is_of_images_of_the_same_prompt() -> None:
    images = torch.tensor([EAST, NORTH, EAST, EAST])
    assert div(images, ["cat", "cat", "dog", "dog"]) == pytest.approx((1 + 0) / 2)
    assert div(images[:3], ["cat", "cat", "cat"]) == pytest.approx((1 + 1 + 0) / 3)
    assert div(images, ["cat", "dog", "cat", "cow"]) == pytest.approx(0)
    with pytest.raises(AssertionError, match="two images"):
        div(images, ["cat", "dog", "cow", "fox"])
