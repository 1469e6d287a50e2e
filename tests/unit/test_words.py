"""Learned words encode exactly as in plain diffusers, in every family, and leave nothing behind."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from torch import nn

from atelier.diffusion.base import Base, load_base
from atelier.diffusion.conditioning import Conditioning
from atelier.diffusion.words import LearnedWords, read_words_file, token_names, write_words_file
from atelier.errors import InvalidArgumentError
from tests.harness.families import tiny_stable_cascade, tiny_stable_diffusion, tiny_stable_diffusion_xl

_PROMPTS = ["a photo of TOK on a hill", "TOK, a DOG and TOK", "a cat face", "TOK " * 60]
_SPELT = [prompt.replace("TOK", "<s0><s1>").replace("DOG", "<s2>") for prompt in _PROMPTS]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Base]:
    """A tiny model by family."""
    parent = tmp_path_factory.mktemp("models")
    makers = (tiny_stable_diffusion, tiny_stable_diffusion_xl, tiny_stable_cascade)
    loaded = [
        load_base(make(parent / make.__name__), device=torch.device("cpu"), dtype=torch.float32) for make in makers
    ]
    return {base.family: base for base in loaded}


def make_tables(base: Base, vectors: int = 3) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        tower.embeds_key: torch.randn(vectors, tower.model.config.hidden_size, generator=generator)
        for tower in base.towers
    }


def make_words(base: Base, tables: Mapping[str, torch.Tensor]) -> LearnedWords:
    return LearnedWords(base, {"TOK": 2, "DOG": 1}, tables)


@torch.no_grad()
def encode_in_diffusers(base: Base, tables: dict[str, torch.Tensor], folder: Path) -> Conditioning:
    """As after `load_textual_inversion` of our file, for families whose pipeline has it."""
    (folder / "learned_embeds.safetensors").write_bytes(write_words_file(tables))
    state = safetensors.torch.load_file(folder / "learned_embeds.safetensors")
    is_xl = base.family == "stable-diffusion-xl"
    pipeline: Any = (StableDiffusionXLPipeline if is_xl else StableDiffusionPipeline).from_pretrained(base.path)
    for index, token in enumerate(token_names(3)):
        for key, suffix in (("clip_l", ""), ("clip_g", "_2"))[: len(tables)]:
            pipeline.load_textual_inversion(
                {token: state[key][index : index + 1]},
                token=token,
                text_encoder=getattr(pipeline, f"text_encoder{suffix}"),
                tokenizer=getattr(pipeline, f"tokenizer{suffix}"),
            )
    if is_xl:
        text, _, pooled, _ = pipeline.encode_prompt(_SPELT, device="cpu", do_classifier_free_guidance=False)
        return Conditioning(text=text, pooled=pooled)
    text, _ = pipeline.encode_prompt(_SPELT, "cpu", 1, False)
    return Conditioning(text=text)


@torch.no_grad()
def encode_with_grown_embedding(base: Base, tables: dict[str, torch.Tensor]) -> Conditioning:
    """As by hand: Stable Cascade's pipelines have no `load_textual_inversion`."""
    fresh = load_base(base.path, device=base.device, dtype=base.dtype)
    tower = fresh.towers[0]
    tower.tokenizer.add_tokens(token_names(3))
    tower.model.resize_token_embeddings(len(tower.tokenizer), mean_resizing=False)
    tower.model.get_input_embeddings().weight[-3:] = tables["clip_g"]
    return fresh.encode_prompts(_SPELT)


@pytest.mark.parametrize("family", ["stable-diffusion", "stable-diffusion-xl", "stable-cascade"])
def test_words_encode_as_in_plain_diffusers(bases: dict[str, Base], family: str, tmp_path: Path) -> None:
    base = bases[family]
    tables = make_tables(base)
    before = base.encode_prompts(_PROMPTS)
    ours = base.encode_prompts(_PROMPTS, make_words(base, tables))
    is_cascade = family == "stable-cascade"
    theirs = encode_with_grown_embedding(base, tables) if is_cascade else encode_in_diffusers(base, tables, tmp_path)
    torch.testing.assert_close(ours.text, theirs.text, rtol=0, atol=1e-5)
    assert (ours.text[0] - before.text[0]).abs().max() > 0.01
    if ours.pooled is not None:
        torch.testing.assert_close(ours.pooled, theirs.pooled, rtol=0, atol=1e-5)
    after = base.encode_prompts(_PROMPTS)
    assert torch.equal(after.text, before.text)
    assert all(len(tower.tokenizer) == tower.model.config.vocab_size for tower in base.towers)


@pytest.mark.parametrize("family", ["stable-diffusion", "stable-diffusion-xl", "stable-cascade"])
def test_gradients_reach_the_vectors_that_a_prompt_has_and_no_others(bases: dict[str, Base], family: str) -> None:
    base = bases[family]
    tables = {key: nn.Parameter(table) for key, table in make_tables(base).items()}
    conditioning = base.encode_prompts(["a photo of TOK"], make_words(base, tables))
    conditioning.text.square().sum().backward()
    for table in tables.values():
        assert table.grad is not None
        assert table.grad[:2].abs().sum(dim=1).gt(0).all()
        assert not table.grad[2].any()
    assert not any(p.requires_grad or p.grad is not None for tower in base.towers for p in tower.model.parameters())


def test_a_word_stands_alone_or_is_not_meant(bases: dict[str, Base]) -> None:
    base = bases["stable-diffusion"]
    words = make_words(base, make_tables(base))
    assert words.expand("TOK, TOKEN, xTOK and TOK's DOG.") == "<s0><s1>, TOKEN, xTOK and <s0><s1>'s <s2>."


def test_a_words_file_survives_and_one_that_does_not_fit_is_refused(bases: dict[str, Base]) -> None:
    xl, sd = bases["stable-diffusion-xl"], bases["stable-diffusion"]
    tables = make_tables(xl)
    read = read_words_file(write_words_file(tables), xl)
    assert read.keys() == {"clip_l", "clip_g"}
    assert all(torch.equal(read[key], tables[key]) for key in tables)
    bad = {
        "the base model needs clip_l": (tables, sd),
        r"clip_l must be finite numbers \[vectors, 64\]": ({"clip_l": tables["clip_l"]}, sd),
        "as many vectors as the others": (tables | {"clip_g": tables["clip_g"][:2]}, xl),
        "clip_g must be finite": (tables | {"clip_g": tables["clip_g"] / 0}, xl),
    }
    for message, (contents, base) in bad.items():
        with pytest.raises(InvalidArgumentError, match=message):
            read_words_file(write_words_file(contents), base)


@torch.no_grad()
def test_sizes_and_crops_change_what_sdxl_predicts(bases: dict[str, Base]) -> None:
    base = bases["stable-diffusion-xl"]
    plain = base.encode_prompts(["a fox", "a cat"])
    latents = torch.randn(2, 4, 8, 8, generator=torch.manual_seed(0))
    timesteps = torch.tensor([10, 900])

    def predict(*sizes: tuple[int, ...]) -> torch.Tensor:
        told = torch.tensor(sizes, dtype=torch.float32) if sizes else None
        return base.predict(latents, timesteps, Conditioning(text=plain.text, pooled=plain.pooled, sizes=told))

    uncropped = (64, 64, 0, 0, 64, 64)
    assert torch.equal(predict(), predict(uncropped, uncropped))
    second_cropped = predict(uncropped, (512, 300, 20, 7, 64, 64))
    torch.testing.assert_close(second_cropped[0], predict()[0], rtol=1e-5, atol=1e-6)
    assert (second_cropped[1] - predict()[1]).abs().max() > 1e-4


def test_rows_and_joins_of_conditioning_keep_every_field(bases: dict[str, Base]) -> None:
    encoded = bases["stable-diffusion-xl"].encode_prompts(["a fox", "a cat"])
    both = Conditioning(text=encoded.text, pooled=encoded.pooled, sizes=torch.arange(12.0).view(2, 6))
    joined = Conditioning.cat([both.rows([1]), both.rows([0, 0])])
    assert joined.sizes is not None
    assert joined.pooled is not None
    assert encoded.pooled is not None
    assert joined.sizes[:, 0].tolist() == [6.0, 0.0, 0.0]
    assert torch.equal(joined.pooled, encoded.pooled[[1, 0, 0]])
    with pytest.raises(AssertionError, match="all parts have a field, or none"):
        Conditioning.cat([both, encoded])
