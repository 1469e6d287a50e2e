"""Where the bench keeps what: the names of files and folders below its output folder."""

from __future__ import annotations

from pathlib import Path

from bench.methods.plan import Method, Run
from bench.methods.subjects import Subject

ADAPTER = "adapter"
"""The folder of a run in which the trained files are."""
MEASURED, FAILURE, LOG = "measured.json", "failure.txt", "train.log"
SCORES, CONTEXTS_GRID, NEIGHBOURS_GRID = "scores.json", "contexts.png", "neighbours.png"
CEILING_SCORES, CEILING_GRID, CAPTIONS_GRID = "ceiling.json", "ceiling.png", "captions.png"


def run_folder(out: Path, run: Run) -> Path:
    """What is in it depends on the run and on nothing else."""
    runs = contender_folder(out, run.method, run.contender.name, run.steps)
    return runs / f"rate-{run.learning_rate:g}-seed-{run.seed}"


def contender_folder(out: Path, method: Method, contender: str, steps: int) -> Path:
    """Of all its runs of so many steps."""
    return out / "runs" / method.name / f"{contender}-{steps}-steps"


def base_folder(out: Path, subject: Subject) -> Path:
    """Where the bare base model's images and scores are, and the ceiling's."""
    return out / "runs" / "base" / subject.name


def peer_images_folder(out: Path, method: Method) -> Path:
    """The images as the peer's script wants them."""
    return out / "peer-images" / method.name
