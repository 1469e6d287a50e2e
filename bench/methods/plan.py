"""The matrix: who trains what, with what both sides have in common. Needs no torch.

Both sides get the same images, steps, batches (the peer's are full ones, see `peers`), rank, number of vectors and of
class images, and the same learning rates to choose from. Everything else is each side's own: Atelier's defaults for
this base model, and what the scripts' README files give.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bench.methods.subjects import FOX, STYLE, Subject

BATCH, RANK, CLASS_IMAGES = 4, 16, 16
EMBEDDING_LEARNING_RATE = 5e-3
NEW_WORD = "<new>"
"""What drawing calls the learned embeddings, whoever learnt them."""
PLACEHOLDER = "TOK"
"""What training calls them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """One way to train a method."""

    name: str
    is_peer: bool
    prior: bool = False
    """Whether class images preserve the prior."""
    overrides: Mapping[str, Any] = field(default_factory=dict)
    """Hyperparameters of Atelier's over its defaults."""


OURS = Contender(name="ours", is_peer=False, prior=True)
OURS_ATTENTION = Contender(name="ours-attention", is_peer=False, prior=True, overrides={"lora_layers": "attention"})
OURS_ALL = Contender(name="ours-all", is_peer=False, overrides={"lora_layers": "all"})
PEER = Contender(name="peer", is_peer=True)
PEER_PRIOR = Contender(name="peer-prior", is_peer=True, prior=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """A method's subject, what both sides have in common, and who competes."""

    name: str
    subject: Subject
    steps: int
    learning_rates: tuple[float, ...]
    """What both sides choose from; the first is Atelier's default."""
    contenders: tuple[Contender, ...]
    word: str = ""
    """The subject's name in prompts when an adapter draws; empty for a style that is in every prompt."""
    instance_prompt: str = ""
    num_vectors: int = 0
    """Learned embeddings; 0 for methods that learn none."""
    initializer_word: str = ""
    """The word whose embedding they begin with; empty begins with noise, as the advanced script always does."""

    def contender(self, name: str) -> Contender:
        """By name; the plan has it."""
        return next(contender for contender in self.contenders if contender.name == name)

    def competing(self, names: Sequence[str], *, with_peer: bool) -> list[Contender]:
        """Those named; or all, which without the peer is Atelier with its defaults alone."""
        if not with_peer:
            return [each for each in self.contenders if each.name in (names or [OURS.name]) and not each.is_peer]
        return [each for each in self.contenders if not names or each.name in names]


METHODS: Mapping[str, Method] = {
    method.name: method
    for method in (
        Method(
            name="dreambooth",
            subject=FOX,
            steps=200,
            learning_rates=(5e-5, 2e-5, 1e-4),
            contenders=(OURS, PEER, PEER_PRIOR),
            word="sks fox",
            instance_prompt="a photo of a sks fox",
        ),
        Method(
            name="dreambooth-lora",
            subject=FOX,
            steps=300,
            learning_rates=(1e-3, 4e-4, 2e-3),
            contenders=(OURS, OURS_ATTENTION, PEER, PEER_PRIOR),
            word="sks fox",
            instance_prompt="a photo of a sks fox",
        ),
        Method(
            name="lora",
            subject=STYLE,
            steps=300,
            learning_rates=(1e-3, 4e-4, 2e-3),
            contenders=(OURS, OURS_ALL, PEER),
        ),
        Method(
            name="textual-inversion",
            subject=FOX,
            steps=300,
            learning_rates=(5e-3, 2e-2, 5e-2),
            contenders=(OURS, PEER),
            word=NEW_WORD,
            instance_prompt=f"a photo of a {PLACEHOLDER}",
            num_vectors=2,
            initializer_word="fox",
        ),
        Method(
            name="pivotal",
            subject=FOX,
            steps=400,
            learning_rates=(1e-3, 4e-4, 2e-3),
            contenders=(OURS, OURS_ATTENTION, PEER, PEER_PRIOR),
            word=NEW_WORD,
            instance_prompt=f"a photo of a {PLACEHOLDER}",
            num_vectors=2,
        ),
    )
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One training."""

    method: Method
    contender: Contender
    learning_rate: float
    seed: int
    steps: int


def search_runs(
    method: Method, contenders: Sequence[Contender], rates: Sequence[float], seed: int, steps: int
) -> list[Run]:
    """All learning rates with one seed, contenders next to each other so that a drifting machine drifts for all."""
    return [
        Run(method=method, contender=contender, learning_rate=rate, seed=seed, steps=steps)
        for rate in rates
        for contender in contenders
    ]
