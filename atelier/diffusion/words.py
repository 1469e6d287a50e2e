"""Learned words (textual inversion, Gal et al. 2022): vectors in place of tokens that a base model has not got.

A word such as `TOK` stands for n tokens `<s0><s1>…`. They are known to a copy of each tokenizer and their vectors are
spliced in behind the base's embedding layer, so that neither the base's tokenizers nor its embeddings change, and two
tenants' `<s0>` never meet. Prompts then encode exactly as in plain diffusers after `load_textual_inversion`.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from transformers import CLIPTokenizer

from atelier.diffusion.base import Base, TextTower
from atelier.diffusion.formats.word_forms import FILE_NAME, read_words, write_words
from atelier.errors import InvalidArgumentError

__all__ = ["FILE_NAME", "LearnedWords", "read_words_file", "token_names", "write_words_file"]


def token_names(count: int) -> list[str]:
    """`<s0>`, `<s1>` and so on."""
    return [f"<s{index}>" for index in range(count)]


class LearnedWords:
    """Words of one job or adapter on one base model.

    Args:
        words: how many vectors each word has, by the word as prompts have it. Together they are rows 0, 1, … of every
            table, in this order.
        tables: [vectors, width] by the towers' `embeds_key`; they may be parameters.
    """

    def __init__(self, base: Base, words: Mapping[str, int], tables: Mapping[str, torch.Tensor]) -> None:
        self.names = token_names(sum(words.values()))
        self.tables = tables
        self._base = base
        self._tokens = _tokens_of(words, self.names)
        self._tokenizers = {tower.component: _extended(tower.tokenizer, self.names) for tower in base.towers}

    def expand(self, prompt: str) -> str:
        """The prompt with each word's tokens in its place."""
        if not self._tokens:
            return prompt
        # The longest first: of `TOK` and `TOK-2`, the latter is meant where both begin.
        words = "|".join(map(re.escape, sorted(self._tokens, key=len, reverse=True)))
        return re.sub(rf"(?<!\w)({words})(?!\w)", lambda match: self._tokens[match[1]], prompt)

    def tokenizer(self, tower: TextTower) -> CLIPTokenizer:
        """The tower's tokenizer, with the tokens added."""
        return self._tokenizers[tower.component]

    @contextmanager
    def spliced(self) -> Iterator[None]:
        """Puts the vectors where their tokens are, for every forward of the towers inside."""
        with ExitStack() as stack:
            for tower in self._base.towers:
                known = len(tower.tokenizer)
                stack.enter_context(_splice(tower.model.get_input_embeddings(), known, self.tables[tower.embeds_key]))
            yield


@contextmanager
def _splice(embedding: nn.Module, known: int, table: torch.Tensor) -> Iterator[None]:
    """Rows of `table` for the ids from `known` on, which the embedding layer itself never sees."""
    new: list[torch.Tensor] = []

    def hide(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        new.append(inputs[0] - known)
        return (inputs[0].masked_fill(inputs[0] >= known, 0),)

    def put(_: nn.Module, __: Any, output: torch.Tensor) -> torch.Tensor:
        rows = new.pop()
        vectors = table.to(output.dtype)[rows.clamp(min=0)]
        return torch.where((rows >= 0).unsqueeze(-1), vectors, output)

    hooks = [embedding.register_forward_pre_hook(hide), embedding.register_forward_hook(put)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _tokens_of(words: Mapping[str, int], names: Sequence[str]) -> dict[str, str]:
    tokens, start = {}, 0
    for word, count in words.items():
        tokens[word] = "".join(names[start : start + count])
        start += count
    return tokens


def _extended(tokenizer: CLIPTokenizer, names: Sequence[str]) -> CLIPTokenizer:
    extended = copy.deepcopy(tokenizer)
    added = extended.add_tokens(list(names))
    if added != len(names):
        raise InvalidArgumentError(
            "base_model", f"its tokenizer has one of the tokens {names[0]} to {names[-1]} already", reason="TOKEN_TAKEN"
        )
    return extended


def write_words_file(tables: Mapping[str, torch.Tensor]) -> bytes:
    """The contents of `learned_embeds.safetensors`, in float32: [vectors, width] by `clip_l` and `clip_g`."""
    return write_words({key: table.detach().float().cpu().numpy() for key, table in tables.items()})


def read_words_file(contents: bytes, base: Base, *, field: str = "adapter") -> dict[str, torch.Tensor]:
    """Reads the vectors for a base model, in float32, as `formats.word_forms.read_words` does."""
    widths = {tower.embeds_key: tower.model.get_input_embeddings().weight.shape[1] for tower in base.towers}
    read = read_words(contents, widths, field=field)
    return {key: torch.from_numpy(table) for key, table in read.items()}
