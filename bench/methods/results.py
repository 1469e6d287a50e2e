"""What the runs left behind, as numbers: scores by contender, training seed and prompt. Needs no torch."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.methods.layout import FAILURE, MEASURED, SCORES, base_folder, contender_folder
from bench.methods.plan import Contender, Method
from bench.methods.process import Measured
from bench.methods.subjects import Subject

_FOLDER = re.compile(r"rate-(?P<rate>.+)-seed-(?P<seed>\d+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """One adapter's scores, each the mean over a prompt's draws: [prompts]."""

    likeness: NDArray[np.float64]
    clip_t: NDArray[np.float64]
    neighbours: Mapping[str, Mapping[str, NDArray[np.float64]]]
    """`clip_t`, `leak` and `preserved` by class."""

    @classmethod
    def read(cls, folder: Path) -> Scores:
        """Of a run's folder, or the base's."""
        content = json.loads((folder / SCORES).read_text())
        neighbours = {
            name: {key: _over_draws(values) for key, values in scores.items()}
            for name, scores in content["neighbours"].items()
        }
        return cls(
            likeness=_over_draws(content["likeness"]), clip_t=_over_draws(content["clip_t"]), neighbours=neighbours
        )

    def others(self, key: str, class_words: str) -> NDArray[np.float64]:
        """A score of all neighbours but the subject's own class, [their prompts]."""
        return np.concatenate([scores[key] for name, scores in self.neighbours.items() if name != class_words])

    def merit(self, class_words: str) -> float:
        """What a learning rate is chosen by: a true subject, in its context, with unharmed neighbours."""
        harm = self.others("leak", class_words).mean() - self.others("clip_t", class_words).mean()
        return float(self.likeness.mean() + self.clip_t.mean() - harm)


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One run's."""

    contender: Contender
    learning_rate: float
    seed: int
    folder: Path
    scores: Scores
    measured: Measured


def is_scored(folder: Path, subject: Subject) -> bool:
    """Whether a folder has scores, by the subject's present prompts and settings."""
    path = folder / SCORES
    return path.is_file() and json.loads(path.read_text()).get("protocol") == subject.protocol


def load_results(out: Path, method: Method, contender: Contender, steps: int) -> list[Result]:
    """All finished runs of a contender, by learning rate and seed."""
    results = []
    for folder in contender_folder(out, method, contender.name, steps).glob("rate-*"):
        match = _FOLDER.fullmatch(folder.name)
        if match and is_scored(folder, method.subject):
            results.append(
                Result(
                    contender=contender,
                    learning_rate=float(match["rate"]),
                    seed=int(match["seed"]),
                    folder=folder,
                    scores=Scores.read(folder),
                    measured=Measured(**json.loads((folder / MEASURED).read_text())),
                )
            )
    return sorted(results, key=lambda result: (result.learning_rate, result.seed))


def failures(out: Path, method: Method, contender: Contender, steps: int) -> list[str]:
    """Why runs are not there, each reason once."""
    files = sorted(contender_folder(out, method, contender.name, steps).glob(f"*/{FAILURE}"))
    return list(dict.fromkeys(file.read_text() for file in files))


def best_learning_rate(results: Sequence[Result], seed: int, class_words: str) -> float | None:
    """With the highest merit of this seed's runs; None when there are none."""
    candidates = [result for result in results if result.seed == seed]
    if not candidates:
        return None
    return max(candidates, key=lambda result: result.scores.merit(class_words)).learning_rate


def base_scores(out: Path, method: Method) -> Scores:
    """The bare base model's."""
    return Scores.read(base_folder(out, method.subject))


def _over_draws(values: Any) -> NDArray[np.float64]:
    return np.asarray(values, np.float64).mean(axis=1)
