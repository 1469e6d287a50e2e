"""`python -m bench` (or `make bench`): prints the tables of docs/benchmarks.md as measured on this machine."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from pathlib import Path

import click
import diffusers
import structlog
import torch
import transformers
from rich.console import Console
from rich.table import Table

from bench import serving, training
from bench.measure import Result, machine

REPOSITORY = Path(__file__).resolve().parent.parent


@click.command()
@click.option("--turns", default=5, show_default=True, help="Counted turns of each contender.")
@click.option("--threads", default=2, show_default=True, help="Torch threads.")
def main(turns: int, threads: int) -> None:
    """Atelier beside diffusers with PEFT."""
    _silence()
    torch.set_num_threads(threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    base, images = REPOSITORY / "models" / "emoji-sd", REPOSITORY / "examples" / "fox"
    console = Console(width=120)
    console.print(machine())
    steps = training.STEPS_A_TURN
    _print(
        console,
        f"{steps} training steps of batch {training.BATCH}",
        training.compare(base, images, turns=turns, device=device),
    )
    contest = serving.Contest(base, device)
    try:
        _print(console, f"One image, one adapter, {serving.STEPS} steps", contest.latency(turns=turns))
        _print(console, f"{serving.NUM_ADAPTERS} images of {serving.NUM_ADAPTERS} adapters", contest.crowd(turns=turns))
        _print(
            console,
            "A new adapter, from its file to a state in which the next image can use it",
            contest.loading(turns=turns),
        )
    finally:
        contest.close()


def _silence() -> None:
    """The tables are what this prints: not the libraries' progress bars and advice."""
    warnings.simplefilter("ignore")
    for library in (diffusers.utils.logging, transformers.utils.logging):
        library.set_verbosity_error()
        library.disable_progress_bar()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))


def _print(console: Console, title: str, results: Sequence[Result]) -> None:
    table = Table(title=title, title_justify="left")
    table.add_column("contender")
    for heading in ("median seconds", "fastest", "slowest", "times as fast as the first"):
        table.add_column(heading, justify="right")
    for result in results:
        shown = (result.median_seconds, min(result.seconds), max(result.seconds))
        table.add_row(result.name, *(f"{value:.4f}" for value in shown), f"{result.speedup_over(results[0]):.2f}")
    console.print(table)


if __name__ == "__main__":
    main()
