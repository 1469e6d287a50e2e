"""`python -m bench` (or `make bench`): prints the tables of docs/benchmarks.md as measured on this machine."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence

import click
import structlog
import torch
from rich.console import Console
from rich.table import Table

from atelier.diffusion.quiet import silence_libraries
from bench import serving, shapes, throughput, training
from bench.measure import Result, machine


@click.command()
@click.option("--turns", default=5, show_default=True, help="Counted turns of each contender.")
@click.option("--threads", default=2, show_default=True, help="Torch threads.")
@click.option(
    "--shapes",
    "shape_names",
    default="",
    help=f"Models whose training throughput is measured, of {', '.join(shapes.SHAPES)}, with commas; "
    "by default those that suit the device.",
)
def main(turns: int, threads: int, shape_names: str) -> None:
    """Atelier beside diffusers with PEFT."""
    _silence()
    torch.set_num_threads(threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    chosen = _shape_names(shape_names) or throughput.default_shapes(device)
    console = Console(width=120)
    console.print(machine())
    steps = training.STEPS_A_TURN
    _print(console, f"{steps} training steps of batch {training.BATCH}", training.compare(turns=turns, device=device))
    _print_memory(console, threads)
    _print_throughput(console, chosen, device, turns)
    contest = serving.Contest(training.BASE, device)
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


def _shape_names(text: str) -> list[str]:
    names = [name for name in text.split(",") if name]
    for name in names:
        if name not in shapes.SHAPES:
            raise click.BadParameter(f"{name!r} is none of {', '.join(shapes.SHAPES)}", param_hint="--shapes")
    return names


def _silence() -> None:
    """The tables are what this prints: not the libraries' progress bars and advice."""
    warnings.simplefilter("ignore")
    silence_libraries()
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


def _print_memory(console: Console, threads: int) -> None:
    table = Table(title="Peak memory of training, each contender in a process of its own", title_justify="left")
    table.add_column("contender")
    table.add_column("MiB", justify="right")
    for name in training.CONTENDERS:
        table.add_row(name, f"{training.peak_memory_alone(name, threads=threads) / 2**20:.0f}")
    console.print(table)


def _print_throughput(console: Console, names: Sequence[str], device: torch.device, steps: int) -> None:
    peak = throughput.find_peak(device)
    console.print(f"Peak of the {device.type}: {peak.flops_per_second / 1e12:.3g} TFLOP/s ({peak.source})")
    if device.type != "cuda":
        console.print("No GPU: the published shapes are left out unless --shapes names them.")
    table = Table(title="Training throughput, random weights but for the embedded base's", title_justify="left")
    for heading in ("shape", "method", "pixels", "batch", "images/s", "GFLOP/image", "share of peak", "peak MiB"):
        table.add_column(heading, justify="left" if heading in ("shape", "method") else "right")
    for name in names:
        for row in throughput.measure(name, device, steps=steps):
            table.add_row(row.shape, row.method, str(row.size), str(row.batch), *_figures(row.figures, peak))
    console.print(table)


def _figures(figures: throughput.Figures | None, peak: throughput.Peak) -> list[str]:
    if figures is None:
        return ["out of memory"]
    rates = (f"{figures.images_per_second:.1f}", f"{figures.flops_per_image / 1e9:.1f}", f"{figures.share(peak):.1%}")
    return [*rates, f"{figures.peak_bytes / 2**20:.0f}"]


if __name__ == "__main__":
    main()
