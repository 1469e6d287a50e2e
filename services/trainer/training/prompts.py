"""Prompts of a job: with the class's words, of random words, and their conditioning, remembered."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable, Sequence

import torch

from atelier.diffusion.base import Base
from atelier.diffusion.conditioning import Conditioning
from services.trainer.methods.base import Concept
from services.trainer.training.noise import seeded_generator

_MAX_REMEMBERED_BYTES = 256 * 1024 * 1024
_WORD_PROMPTS = 128
_MIN_WORD_LETTERS = 4


class PromptCache:
    """Conditioning of the prompts that were asked for last, one row each, without gradients.

    Args:
        rows: where it is kept, the last asked for at the end.
    """

    def __init__(
        self, encode: Callable[[Sequence[str]], Conditioning], rows: OrderedDict[str, Conditioning] | None = None
    ) -> None:
        self._encode = encode
        self._rows = OrderedDict() if rows is None else rows

    @torch.no_grad()
    def rows(self, prompts: Sequence[str]) -> Conditioning:
        """One row for each prompt."""
        for prompt in prompts:
            if prompt not in self._rows:
                self._rows[prompt] = self._encode_alone(prompt)
        found = Conditioning.cat([self._rows[prompt] for prompt in prompts])
        for prompt in prompts:
            self._rows.move_to_end(prompt)
        most = max(1, _MAX_REMEMBERED_BYTES // found.rows([0]).nbytes)
        while len(self._rows) > most:
            self._rows.popitem(last=False)
        return found

    def _encode_alone(self, prompt: str) -> Conditioning:
        """Whatever else is asked for, and in whose mixed precision: other jobs get the same row."""
        with torch.autocast("cuda", enabled=False), torch.autocast("cpu", enabled=False):
            return self._encode([prompt])


# By the base's digest, device and number type. It holds no model, so that the worker can let one go.
_rows_of_bases: dict[tuple[str, str, str], OrderedDict[str, Conditioning]] = {}


def base_prompts(base: Base) -> PromptCache:
    """The cache of a bare base model, shared by all jobs of this process."""
    key = (base.digest, str(base.device), str(base.dtype))
    if key not in _rows_of_bases:
        _rows_of_bases.clear()  # one base model is warm at a time
        _rows_of_bases[key] = OrderedDict()
    return PromptCache(base.encode_prompts, _rows_of_bases[key])


def word_prompts(base: Base, seed: int) -> list[str]:
    """Prompts of random words that the base's tokenizer has as one token: a sample of all that may be asked of it."""
    end = "</w>"
    tokens = (token for token in base.towers[0].tokenizer.get_vocab() if token.endswith(end))
    words = sorted(
        word for token in tokens if len(word := token.removesuffix(end)) >= _MIN_WORD_LETTERS and word.isalpha()
    )
    chosen = torch.randint(len(words), (_WORD_PROMPTS, 2), generator=seeded_generator(seed, "words", 0)).tolist()
    return [
        f"a photo of a {words[first]}" if i % 2 else f"a {words[first]} {words[second]}"
        for i, (first, second) in enumerate(chosen)
    ]


def to_class_words(prompt: str, concepts: Sequence[Concept]) -> str:
    """`prompt` with the class's words in place of the instance's.

    They are those that only a concept's class prompt, or only its instance prompt, has: with `a photo of a sks fox` and
    `a photo of a fox face`, `a sks fox in snow` becomes `a fox face in snow`. Where that leaves a placeholder token,
    which the base has never heard of, it is taken out.
    """
    for concept in concepts:
        prompt = _replace_words(prompt, concept.instance_prompt, concept.class_prompt)
        if concept.placeholder_token:
            prompt = re.sub(rf"(?<!\w){re.escape(concept.placeholder_token)}(?!\w)", "", prompt)
    return " ".join(prompt.split())


def _replace_words(prompt: str, instance_prompt: str, class_prompt: str) -> str:
    instance, klass = instance_prompt.split(), class_prompt.split()
    if not klass:
        return prompt
    while instance and klass and instance[0] == klass[0]:
        instance, klass = instance[1:], klass[1:]
    while instance and klass and instance[-1] == klass[-1]:
        instance, klass = instance[:-1], klass[:-1]
    if not instance:
        return prompt
    return re.sub(rf"(?<!\w){re.escape(' '.join(instance))}(?!\w)", lambda _: " ".join(klass), prompt)
