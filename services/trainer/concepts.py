"""A job's concepts, checked: for each the dataset, its prompts, and the placeholder token that must be in them.

The first concept is the job's own fields, further ones are `Job.concepts`. Errors name the fields as a job has them,
such as `concepts[0].placeholder_token`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from atelier.errors import InvalidArgumentError
from atelier.pb.trainer.v1 import trainer_pb2 as pb
from atelier.rpc.names import DATASET, MAX_PROMPT_CHARACTERS, check_text, shown
from services.trainer.methods import METHODS
from services.trainer.tables import DatasetRow

MAX_CONCEPTS = 15
"""Beside the job's own."""
MAX_REPEATS = 100
MAX_TOKEN_CHARACTERS = 32
DEFAULT_TOKEN = "TOK"
_RECORDED = ("instance_prompt", "class_prompt", "placeholder_token", "repeats")
_LEARNS_WORDS = "num_vectors"
"""The hyperparameter of the methods that learn embeddings, for which the prompts have a placeholder token."""
_TOKEN = re.compile(r"[^\s<>\0]+")


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckedConcept:
    """A concept that passed every check."""

    dataset: DatasetRow
    instance_prompt: str
    class_prompt: str
    placeholder_token: str
    repeats: int

    def record(self) -> dict[str, Any]:
        """What `JobRow.concepts` keeps of it."""
        fields = {name: getattr(self, name) for name in _RECORDED}
        return {"dataset_id": self.dataset.dataset_id, **fields}


def to_proto(tenant: str, record: Mapping[str, Any]) -> pb.Concept:
    """The contract's form of a record."""
    fields = {name: record[name] for name in _RECORDED}
    return pb.Concept(dataset=DATASET.format(tenant=tenant, dataset=record["dataset_id"]), **fields)


def has_word(text: str, word: str) -> bool:
    """Whether `word` is in `text`, not as a part of a longer word."""
    return re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text) is not None


def check_concepts(job: pb.Job, datasets: Sequence[DatasetRow], *, repeats: int) -> list[CheckedConcept]:
    """All concepts of a job of a known method, the job's own first.

    Args:
        datasets: of all concepts, in the same order.
        repeats: of the job's own images, a hyperparameter.

    Raises:
        InvalidArgumentError: a prompt, placeholder token or number of repeats will not do.
    """
    sources: list[pb.Job | pb.Concept] = [job, *job.concepts]
    prefixes = ["", *(f"concepts[{index}]." for index in range(len(job.concepts)))]
    tokens = _checked_tokens(job.method, [source.placeholder_token for source in sources], prefixes)
    all_repeats = [repeats, *(_checked_repeats(concept, index) for index, concept in enumerate(job.concepts))]
    concepts = [
        CheckedConcept(
            dataset=dataset,
            instance_prompt=source.instance_prompt,
            class_prompt=source.class_prompt,
            placeholder_token=token,
            repeats=times,
        )
        for source, dataset, token, times in zip(sources, datasets, tokens, all_repeats, strict=True)
    ]
    for concept, prefix in zip(concepts, prefixes, strict=True):
        _check_prompts(concept, prefix)
    return concepts


def check_concept_count(job: pb.Job) -> None:
    """Refuses more concepts than a job may have."""
    if len(job.concepts) > MAX_CONCEPTS:
        raise InvalidArgumentError(
            "concepts", f"holds {len(job.concepts)} concepts; at most {MAX_CONCEPTS} are allowed beside the job's own"
        )


def _check_prompts(concept: CheckedConcept, prefix: str) -> None:
    for name in ("instance_prompt", "class_prompt"):
        check_text(getattr(concept, name), f"{prefix}{name}", max_characters=MAX_PROMPT_CHARACTERS)
    bare = [image["path"] for image in concept.dataset.images if not image["caption"]]
    if bare and not concept.instance_prompt.strip():
        raise InvalidArgumentError(
            f"{prefix}instance_prompt", f"is empty, but image {shown(bare[0])} has no caption; give one of the two"
        )
    token = concept.placeholder_token
    if token and not _is_prompted(concept):
        raise InvalidArgumentError(
            f"{prefix}instance_prompt",
            f"has not the placeholder token {shown(token)} as a word, nor has a caption; no image would teach it",
            reason="PLACEHOLDER_TOKEN_MISSING",
        )


def _checked_repeats(concept: pb.Concept, index: int) -> int:
    if not 0 <= concept.repeats <= MAX_REPEATS:
        raise InvalidArgumentError(
            f"concepts[{index}].repeats", f"is {concept.repeats}; 1 to {MAX_REPEATS} are allowed, and 0, which means 1"
        )
    return concept.repeats or 1


def _is_prompted(concept: CheckedConcept) -> bool:
    """Whether any image is learnt with the token: with its caption, or the instance prompt where it has none."""
    prompts = [image["caption"] or concept.instance_prompt for image in concept.dataset.images]
    return any(has_word(prompt, concept.placeholder_token) for prompt in prompts)


def _checked_tokens(method: str, tokens: Sequence[str], prefixes: Sequence[str]) -> list[str]:
    if _LEARNS_WORDS not in METHODS[method].fields:
        _refuse_tokens(method, tokens, prefixes)
        return list(tokens)
    if list(tokens) == [""]:
        return [DEFAULT_TOKEN]
    for index, (token, prefix) in enumerate(zip(tokens, prefixes, strict=True)):
        _check_token(token, tokens[:index], f"{prefix}placeholder_token")
    return list(tokens)


def _refuse_tokens(method: str, tokens: Sequence[str], prefixes: Sequence[str]) -> None:
    for token, prefix in zip(tokens, prefixes, strict=True):
        if token:
            allowed = " and ".join(name for name, each in METHODS.items() if _LEARNS_WORDS in each.fields)
            raise InvalidArgumentError(
                f"{prefix}placeholder_token", f"is {shown(token)}, but {method} has none; only {allowed} have one"
            )


def _check_token(token: str, earlier: Sequence[str], field: str) -> None:
    rule = f"allowed is one word of at most {MAX_TOKEN_CHARACTERS} characters without white space, '<' and '>'"
    if not token:
        raise InvalidArgumentError(field, f"is empty; with several concepts each needs its own, and {rule}")
    if len(token) > MAX_TOKEN_CHARACTERS or not _TOKEN.fullmatch(token):
        raise InvalidArgumentError(field, f"is {shown(token)}; {rule}")
    for other in earlier:
        if has_word(other, token) or has_word(token, other):
            raise InvalidArgumentError(
                field, f"is {shown(token)}, but another concept has {shown(other)}; each needs a word of its own"
            )
