"""Prompts of a job: in the class's words, of random words, and their conditioning."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import pytest
import torch

from atelier.diffusion.base import Base
from atelier.diffusion.conditioning import Conditioning
from services.trainer.methods.base import Concept
from services.trainer.training.evaluation import validation_prompts
from services.trainer.training.prior import class_prompts
from services.trainer.training.prompts import PromptCache, to_class_words, word_prompts
from tests.harness.training import fox_images, make_job


def concept(instance: str, klass: str, token: str = "") -> Concept:
    return Concept(images=(), instance_prompt=instance, class_prompt=klass, placeholder_token=token)


@pytest.mark.parametrize(
    ("prompt", "instance", "klass", "expected"),
    [
        (
            "a photo of a sks fox in snow",
            "a photo of a sks fox",
            "a photo of a fox face",
            "a photo of a fox face in snow",
        ),
        ("sks fox, red", "a sks fox", "a fox face", "fox face, red"),
        ("a sks dog runs", "a sks dog", "a dog", "a dog runs"),
        ("a cat", "a sks dog", "a dog", "a cat"),
        ("a sksy cat", "a sks dog", "a dog", "a sksy cat"),
        ("a sks dog", "a sks dog", "", "a sks dog"),
    ],
)
def test_class_words_take_the_place_of_the_instance_s(prompt: str, instance: str, klass: str, expected: str) -> None:
    assert to_class_words(prompt, [concept(instance, klass)]) == expected


@pytest.mark.parametrize(
    ("prompt", "klass", "expected"),
    [
        ("a TOK in snow", "a fox", "a fox in snow"),
        ("a painting of TOK", "a fox", "a painting of fox"),
        ("a TOK in snow", "", "a in snow"),
        ("a TOKEN", "", "a TOKEN"),
    ],
)
def test_a_placeholder_token_never_reaches_the_base(prompt: str, klass: str, expected: str) -> None:
    assert to_class_words(prompt, [concept("a TOK", klass, "TOK")]) == expected


def test_each_concept_s_words_are_replaced_by_its_own_class_s() -> None:
    concepts = [concept("a sks fox", "a fox"), concept("a zwx dog", "a dog"), concept("in the style of qrt", "")]
    prompt = "a sks fox beside a zwx dog in the style of qrt"
    assert to_class_words(prompt, concepts) == "a fox beside a dog in the style of qrt"


def test_captions_in_the_class_s_words_are_class_prompts_once_each() -> None:
    captions = ("a sks fox in snow", "", "a sks fox in snow", "a sks fox")
    images = tuple(
        type(image)(path=image.path, contents=b"", caption=caption)
        for image, caption in zip(fox_images(4), captions, strict=True)
    )
    own = Concept(images=images, instance_prompt="a sks fox", class_prompt="a fox")
    assert class_prompts(own) == ["a fox", "a fox in snow"]


def test_random_words_are_whole_words_and_depend_on_the_seed(base: Base) -> None:
    prompts = word_prompts(base, 1)
    assert prompts == word_prompts(base, 1)
    assert prompts != word_prompts(base, 2)
    ids = base.towers[0].tokenizer(prompts).input_ids
    assert all(len(row) == 2 + len(prompt.split()) for row, prompt in zip(ids, prompts, strict=True))


def test_a_job_without_validation_prompts_is_validated_on_what_it_learns_from(base: Base) -> None:
    job = make_job("lora", base)
    assert validation_prompts(job) == ["a photo of a sks fox on a red background"]
    bare = dataclasses.replace(job, validation_prompts=(), concepts=job.concepts * 2)
    assert validation_prompts(bare) == ["a photo of a sks fox"]


def test_a_row_is_the_same_whatever_else_was_asked_for_with_it() -> None:
    """The rows of larger batches differ in their last bits on some devices: here in what they say of the batch."""

    def encode(prompts: Sequence[str]) -> Conditioning:
        return Conditioning(text=torch.full((len(prompts), 1, 1), float(len(prompts))))

    assert PromptCache(encode).rows(["a", "bb", "a", "ccc"]).text.flatten().tolist() == [1, 1, 1, 1]


def test_a_row_has_the_base_s_own_precision_inside_a_job_s_mixed_one(base: Base) -> None:
    plain = PromptCache(base.encode_prompts).rows(["a fox"])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = PromptCache(base.encode_prompts).rows(["a fox"])
        assert torch.is_autocast_enabled("cpu"), "for what comes after"
    assert mixed.text.dtype == torch.float32
    assert torch.equal(mixed.text, plain.text)


def test_a_remembered_prompt_is_encoded_once() -> None:
    asked: list[str] = []

    def encode(prompts: Sequence[str]) -> Conditioning:
        asked.extend(prompts)
        return Conditioning(text=torch.tensor([[[float(len(prompt))]] for prompt in prompts]))

    cache = PromptCache(encode)
    assert cache.rows(["a", "bb", "a"]).text.flatten().tolist() == [1, 2, 1]
    assert cache.rows(["bb", "ccc"]).text.flatten().tolist() == [2, 3]
    assert asked == ["a", "bb", "ccc"]
