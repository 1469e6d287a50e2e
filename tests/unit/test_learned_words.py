"""Which word a prompt means where one begins as another does, and vectors without a shape."""

from __future__ import annotations

import pytest
import safetensors.torch
import torch

from atelier.diffusion.families.stable_diffusion import StableDiffusion
from atelier.diffusion.words import LearnedWords, read_words_file
from atelier.errors import InvalidArgumentError


def test_the_longest_word_is_meant(base: StableDiffusion) -> None:
    words = LearnedWords(base, {"TOK": 2, "TOK-2": 1}, {"clip_l": torch.zeros(3, 256)})
    assert words.expand("TOK and TOK-2") == "<s0><s1> and <s2>"


def test_numbers_without_a_shape_are_refused(base: StableDiffusion) -> None:
    with pytest.raises(InvalidArgumentError, match="clip_l must be finite numbers"):
        read_words_file(safetensors.torch.save({"clip_l": torch.ones(())}), base)
