"""The report's tables, in Markdown."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.methods.bootstrap import Interval, paired_interval
from bench.methods.plan import Contender
from bench.methods.results import Result, Scores
from bench.methods.subjects import Subject

_GIB = 2**30
Chosen = dict[str, list[Result]]
"""The runs of each contender's best learning rate, by seed."""
_Take = Callable[[Scores], NDArray[np.float64]]


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown; the first column is text, the others are numbers."""
    lines = [headings, ["---", *["---:"] * (len(headings) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def before_and_after(
    base: Scores, ceiling: dict[str, Any], chosen: Chosen, failed: dict[str, str], subject: Subject
) -> str:
    """Scores, time and memory: the base, every contender, and the ceiling."""
    headings = ["", "rate", "seeds", subject.likeness, "CLIP-T", "neighbours' CLIP-T", "leak", "preserved"]
    headings += ["class leak", "whole process s", "s/step", "peak GiB"]
    rows = [["base", "", "", *_score_cells([base], subject.class_words), "", "", ""]]
    for name, results in chosen.items():
        scores = [result.scores for result in results]
        seeds = ", ".join(str(result.seed) for result in results)
        rate = f"{results[0].learning_rate:g}"
        rows.append([name, rate, seeds, *_score_cells(scores, subject.class_words), *_cost_cells(results)])
    rows += [[name, f"not run: {_one_line(reason)}", *[""] * 10] for name, reason in failed.items()]
    if "likeness" in ceiling:
        cells = [f"{np.mean(ceiling[key]):.3f}" for key in ("likeness", "clip_t")]
        rows.append(["ceiling: the real subject pasted", "", "", *cells, *[""] * 7])
    return table(headings, rows)


def paired(ours: Contender, theirs: Contender, chosen: Chosen, class_words: str) -> list[str] | None:
    """A row of differences with intervals and of ratios, over the seeds that both have; None without such a seed."""
    pairs = _pairs(chosen.get(ours.name, []), chosen.get(theirs.name, []))
    if not pairs:
        return None
    takes: list[_Take] = [
        lambda scores: scores.likeness,
        lambda scores: scores.clip_t,
        lambda scores: scores.others("clip_t", class_words),
        lambda scores: scores.others("leak", class_words),
    ]
    cells = [_interval_cell(_difference(pairs, take)) for take in takes]
    steps = [(a.measured.seconds_per_step, b.measured.seconds_per_step) for a, b in pairs]
    ratios = [a / b for a, b in steps if a and b]
    memory = [a.measured.peak_rss_bytes / b.measured.peak_rss_bytes for a, b in pairs]
    seconds = f"{np.median(ratios):.2f}" if ratios else ""
    return [f"{ours.name} − {theirs.name}", str(len(pairs)), *cells, seconds, f"{np.median(memory):.2f}"]


def paired_headings(subject: Subject) -> list[str]:
    """Of rows of `paired`."""
    scores = [subject.likeness, "CLIP-T", "neighbours' CLIP-T", "leak"]
    return ["pair", "seeds", *scores, "s/step, ratio", "peak memory, ratio"]


def drift(base: Scores, chosen: Chosen) -> str:
    """Class by class: CLIP-T, leak and preservation, after minus before where a difference says more."""
    rows = []
    for name, before in base.neighbours.items():
        rows.append([name, "base", f"{before['clip_t'].mean():.3f}", "", f"{before['leak'].mean():.3f}", "", ""])
        for contender, results in chosen.items():
            after = {key: np.mean([result.scores.neighbours[name][key] for result in results]) for key in before}
            moved = {key: after[key] - before[key].mean() for key in before}
            cells = [f"{after['clip_t']:.3f}", f"{moved['clip_t']:+.3f}", f"{after['leak']:.3f}"]
            rows.append([name, contender, *cells, f"{moved['leak']:+.3f}", f"{after['preserved']:.3f}"])
    return table(["class", "", "CLIP-T", "moved", "leak", "moved", "preserved"], rows)


def search(results: Sequence[Result], subject: Subject) -> str:
    """Every run there is."""
    rows = []
    for result in results:
        cells = _score_cells([result.scores], subject.class_words)
        merit = f"{result.scores.merit(subject.class_words):.3f}"
        head = [result.contender.name, f"{result.learning_rate:g}", str(result.seed)]
        rows.append([*head, *cells, merit, *_cost_cells([result])])
    headings = ["", "rate", "seed", subject.likeness, "CLIP-T", "neighbours' CLIP-T", "leak", "preserved", "class leak"]
    return table([*headings, "merit", "whole process s", "s/step", "peak GiB"], rows)


def _score_cells(scores: Sequence[Scores], class_words: str) -> list[str]:
    def others(key: str) -> float:
        return float(np.mean([score.others(key, class_words) for score in scores]))

    likeness, clip_t = (np.array([getattr(score, key).mean() for score in scores]) for key in ("likeness", "clip_t"))
    own = [score.neighbours[class_words]["leak"] for score in scores if class_words in score.neighbours]
    return [
        _spread(likeness),
        _spread(clip_t),
        f"{others('clip_t'):.3f}",
        f"{others('leak'):.3f}",
        f"{others('preserved'):.3f}",
        f"{np.mean(own):.3f}" if own else "",
    ]


def _cost_cells(results: Sequence[Result]) -> list[str]:
    """Medians over seeds."""
    measured = [result.measured for result in results]
    seconds = [each.seconds_per_step for each in measured if each.seconds_per_step is not None]
    return [
        f"{np.median([each.wall_seconds for each in measured]):.0f}",
        f"{np.median(seconds):.3f}" if seconds else "",
        f"{np.median([each.peak_rss_bytes for each in measured]) / _GIB:.2f}",
    ]


def _spread(values: NDArray[np.float64]) -> str:
    """A mean, and the extremes over seeds."""
    if len(values) == 1:
        return f"{values[0]:.3f}"
    return f"{values.mean():.3f} ({values.min():.3f}–{values.max():.3f})"


def _pairs(ours: Sequence[Result], theirs: Sequence[Result]) -> list[tuple[Result, Result]]:
    by_seed = {result.seed: result for result in theirs}
    return [(result, by_seed[result.seed]) for result in ours if result.seed in by_seed]


def _difference(pairs: Sequence[tuple[Result, Result]], take: _Take) -> Interval:
    ours, theirs = (np.stack([take(pair[side].scores) for pair in pairs]) for side in (0, 1))
    return paired_interval(ours, theirs)


def _interval_cell(interval: Interval) -> str:
    return f"{interval.mean:+.3f} [{interval.low:+.3f}, {interval.high:+.3f}]"


def _one_line(reason: str) -> str:
    """The last line says most of a long message."""
    return reason.strip().splitlines()[-1].replace("|", "/")[:120]
