"""The report of what is there: `report.md` with tables for each method, and contact sheets beside it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from bench.measure import machine
from bench.methods import tables
from bench.methods.drawing import load_grid
from bench.methods.layout import CEILING_GRID, CEILING_SCORES, CONTEXTS_GRID, NEIGHBOURS_GRID, base_folder
from bench.methods.plan import BATCH, Method
from bench.methods.results import Result, base_scores, best_learning_rate, failures, load_results
from bench.methods.subjects import DRAWS, GUIDANCE, STEPS, Subject
from examples.demo.contact_sheet import Column, draw_contact_sheet

_SHEET_DRAWS = 2
_HOW_TO_READ = f"""\
Cosines of the embedded base's own CLIP, over contexts that are in no training caption, {DRAWS} images each, {STEPS}
DDIM steps at guidance {GUIDANCE:g}, drawn by plain diffusers for every contender. CLIP-I: to the training images.
CLIP-T: to the prompt, with the class in place of the subject's name. Style: how far an image went from the base's image
with the same seed, in the direction in which the training images differ from what the base draws of their captions; 1
is as far as they. Neighbours: prompts of other classes, which should stay what they were; leak is their likeness
(CLIP-I or style) to the training images, preserved their cosine to what the bare base draws with the same seed. Class
leak: the leak of the subject's own class. In brackets the extremes over training seeds.

Every contender saw the same images equally often (batches of {BATCH}, all full) and had the same learning rates to
choose from; the one with the highest merit (likeness + CLIP-T + neighbours' CLIP-T − leak) of the first seed was taken
for all seeds. The choice is by the prompts that are reported, for both sides. Whole process: from start to exit, with
imports, loading, class images and, for Atelier, the load-back check. s/step: between the steps' own ticks of the
progress bar, by the bench's clock. Peak: the process' maximum resident memory as the kernel counted it.
"""


def write_report(out: Path, methods: Sequence[Method], steps: int | None, seeds: Sequence[int]) -> Path:
    """Writes `report.md` and `sheets/` and returns the report's path."""
    parts = ["# The methods, before and after\n", f"{machine()}\n", _HOW_TO_READ]
    for method in methods:
        parts += _section(out, method, steps or method.steps, seeds)
    path = out / "report.md"
    path.write_text("\n".join(parts))
    return path


def _section(out: Path, method: Method, steps: int, seeds: Sequence[int]) -> list[str]:
    subject = method.subject
    results = {each.name: load_results(out, method, each, steps) for each in method.contenders}
    chosen = {name: runs for name, all_runs in results.items() if (runs := _chosen(all_runs, method, seeds))}
    reasons = {each.name: failures(out, method, each, steps) for each in method.contenders}
    failed = {name: reason[0] for name, reason in reasons.items() if reason and name not in chosen}
    base = base_scores(out, method)
    ceiling = json.loads((base_folder(out, subject) / CEILING_SCORES).read_text())
    real = ceiling["training_likeness"]
    sheets = _write_sheets(out, method, steps, chosen)
    pairs = [
        row
        for ours in method.contenders
        for theirs in method.contenders
        if theirs.is_peer and not ours.is_peer
        if (row := tables.paired(ours, theirs, chosen, subject.class_words))
    ]
    return [
        f"## {method.name}: `{subject.name}`, {steps} steps\n",
        f"{len(subject.contexts)} contexts. The training images, by each other: {subject.likeness} {real:.3f}.\n",
        tables.before_and_after(base, ceiling, chosen, failed, subject),
        "Paired differences, 95 % bootstrap intervals over prompts and seeds:\n",
        tables.table(tables.paired_headings(subject), pairs) if pairs else "No pair of both sides is there.\n",
        "Class by class:\n",
        tables.drift(base, chosen),
        "All runs:\n",
        tables.search([result for runs in results.values() for result in runs], subject),
        *(f"![{sheet.stem}]({sheet.relative_to(out)})\n" for sheet in sheets),
    ]


def _chosen(results: Sequence[Result], method: Method, seeds: Sequence[int]) -> list[Result]:
    rate = best_learning_rate(results, seeds[0], method.subject.class_words)
    return [result for result in results if result.learning_rate == rate and result.seed in seeds]


def _write_sheets(out: Path, method: Method, steps: int, chosen: tables.Chosen) -> list[Path]:
    subject = method.subject
    training = [Image.open(path) for path in subject.image_paths]
    neighbours = [prompt for prompts in subject.neighbours.values() for prompt in prompts]
    labels = {CONTEXTS_GRID: subject.prompts("…"), NEIGHBOURS_GRID: neighbours}
    folder = out / "sheets"
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for grid, prompts in labels.items():
        base, count = base_folder(out, subject), len(prompts)
        columns = [_column("base", base / grid, count, "")]
        columns += [
            _column(name, runs[0].folder / grid, count, _note(subject, runs[0])) for name, runs in chosen.items()
        ]
        if grid == CONTEXTS_GRID and (base / CEILING_GRID).is_file():
            columns.append(_column("ceiling", base / CEILING_GRID, count, "the real subject pasted"))
        path = folder / f"{method.name}-{steps}-steps-{Path(grid).stem}.webp"
        columns_of_images = _SHEET_DRAWS * len(columns)
        title = f"{method.name}: {subject.name}, {steps} steps"
        draw_contact_sheet(title, training[:columns_of_images], prompts, columns).save(path, quality=88)
        paths.append(path)
    return paths


def _column(name: str, grid: Path, num_rows: int, note: str) -> Column:
    return Column(title=name, note=note, rows=[row[:_SHEET_DRAWS] for row in load_grid(grid, num_rows)])


def _note(subject: Subject, result: Result) -> str:
    likeness, clip_t = (float(np.mean(values)) for values in (result.scores.likeness, result.scores.clip_t))
    return f"rate {result.learning_rate:g}   {subject.likeness} {likeness:.3f}   CLIP-T {clip_t:.3f}"
