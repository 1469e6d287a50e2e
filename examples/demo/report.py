"""What the demo shows for it: scores, tables, the contact sheet, and whether all is as it must be."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import click
from PIL import Image

from atelier.cli.output import print_table
from examples.demo.contact_sheet import Column, draw_contact_sheet
from examples.demo.scores import MeanScores, score
from examples.demo.stage_meter import Stage

MIN_CLIP_I_GAIN = 0.05
MAX_SECOND_LOAD_SECONDS = 0.005


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """The images of all contexts, [context][image], and what loading the adapter took."""

    subject: str
    class_words: str
    contexts: Sequence[str]
    base: list[list[Image.Image]]
    adapter: list[list[Image.Image]]
    first_load_seconds: float
    second_load_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """The training images, and how the drawn ones compare with them and with their prompts."""

    training: Sequence[Image.Image]
    base: MeanScores
    adapter: MeanScores


def measure(models: Path, training_folder: Path, drawn: Drawn) -> Measured:
    """Scores what was drawn; `models` holds the embedded base and its scorer."""
    training = [Image.open(path) for path in sorted(training_folder.glob("*.png"))]
    prompts = [f"a photo of a {drawn.class_words} {context}" for context in drawn.contexts]
    base, adapter = score(models, training, prompts, [drawn.base, drawn.adapter])
    return Measured(training=training, base=base, adapter=adapter)


def find_problems(measured: Measured, drawn: Drawn) -> list[str]:
    """What must hold and does not."""
    problems = []
    gain = measured.adapter.clip_i - measured.base.clip_i
    if not gain >= MIN_CLIP_I_GAIN:  # so that NaN is a problem
        problems.append(f"the adapter's CLIP-I is {gain:+.3f} above the base's; at least +{MIN_CLIP_I_GAIN} is wanted")
    if not drawn.second_load_seconds <= MAX_SECOND_LOAD_SECONDS:
        spent, allowed = _milliseconds(drawn.second_load_seconds), _milliseconds(MAX_SECOND_LOAD_SECONDS)
        problems.append(f"the second Generate spent {spent} on loading its adapter; at most {allowed} is wanted")
    return problems


def write_report(
    folder: Path, stages: Sequence[Stage], measured: Measured, drawn: Drawn, problems: Sequence[str]
) -> None:
    """Writes `report.json` and `contact_sheet.png`."""
    content = {
        "scores": {"base": asdict(measured.base), "adapter": asdict(measured.adapter)},
        "adapter_load_seconds": {"first": drawn.first_load_seconds, "second": drawn.second_load_seconds},
        "stages": [asdict(stage) for stage in stages],
        "contexts": drawn.contexts,
        "problems": problems,
    }
    (folder / "report.json").write_text(json.dumps(content, indent=2) + "\n")
    columns = [
        Column(title=f"base model: a {drawn.class_words} ...", note=_note(measured.base), rows=drawn.base),
        Column(title=f"with the adapter: a {drawn.subject} ...", note=_note(measured.adapter), rows=drawn.adapter),
    ]
    title = "Atelier: five images in, the same fox anywhere out"
    draw_contact_sheet(title, measured.training, drawn.contexts, columns).save(folder / "contact_sheet.png")


def print_report(
    folder: Path, stages: Sequence[Stage], measured: Measured, drawn: Drawn, problems: Sequence[str]
) -> None:
    """Prints the tables, and what is not as it must be."""
    count = sum(len(row) for row in drawn.adapter)
    scores = (("base, prompted with the class", measured.base), ("adapter", measured.adapter))
    rows = [(name, f"{each.clip_i:.3f}", f"{each.clip_t:.3f}") for name, each in scores]
    print_table(f"Scores over {count} images each", ("", "CLIP-I to the fox", "CLIP-T to the prompt"), rows)
    usage = [(each.name, f"{each.wall_seconds:.1f} s", f"{each.peak_rss_bytes / 2**30:.2f} GiB") for each in stages]
    print_table("Stages", ("stage", "wall time", "peak memory (sum of RSS)"), usage)
    loads = (("first Generate", drawn.first_load_seconds), ("second Generate", drawn.second_load_seconds))
    print_table("Loading the adapter", ("", "time"), [(name, _milliseconds(seconds)) for name, seconds in loads])
    click.echo(f"{sum(stage.wall_seconds for stage in stages):.0f} s in all; see {folder / 'contact_sheet.png'}")
    for problem in problems:
        click.echo(f"FAILED: {problem}", err=True)


def _note(scores: MeanScores) -> str:
    return f"CLIP-I {scores.clip_i:.3f}   CLIP-T {scores.clip_t:.3f}"


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms"
