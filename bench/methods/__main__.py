"""`python -m bench.methods` (or `make bench-methods`): trains and scores what is not there yet, then writes the report.

    python -m bench.methods                                        Atelier's defaults, three seeds
    python -m bench.methods --method lora --peer-scripts ~/diffusers/examples
    python -m bench.methods --method pivotal --contender ours --learning-rates 1e-3,2e-3 --seeds 0

Any part of the matrix can be made alone: what is there is kept, and the report is of what is there. The peer's scripts
run on this interpreter unless `--peer-python` names another; the one for `lora` needs the package `datasets`, which is
not among this project's.

Everything heavy happens in other processes, so that their memory is measured and not this one's.
"""

from __future__ import annotations

import sys
from pathlib import Path

import click

from bench.methods.peers import Peer, prepare_base
from bench.methods.plan import METHODS, Contender, Method, Run, search_runs
from bench.methods.results import best_learning_rate, load_results
from bench.methods.running import Runner
from bench.methods.subjects import BASE, ROOT


def _numbers(_: click.Context, option: click.Parameter, text: str | None) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(",")) if text else ()
    except ValueError as error:
        raise click.BadParameter(f"{text!r} is no list of numbers such as 1e-3,2e-3", param=option) from error


@click.command()
@click.option("--method", "names", multiple=True, type=click.Choice(list(METHODS)), help="Default: all five.")
@click.option("--contender", "contenders", multiple=True, help="Default: all; without the peer `ours`.")
@click.option("--seeds", default="0,1,2", show_default=True, callback=_numbers, help="Training seeds.")
@click.option("--learning-rates", callback=_numbers, help="Default: those of the plan; without the peer Atelier's own.")
@click.option("--steps", type=click.IntRange(min=1), help="Training steps; default: the plan's.")
@click.option("--peer-scripts", type=click.Path(path_type=Path, exists=True), help="The `examples` of diffusers.")
@click.option("--peer-python", default=sys.executable, help="Interpreter of the peer's scripts; default: this one.")
@click.option("--threads", default=2, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=ROOT / "build" / "bench-methods", show_default=True)
def main(
    names: tuple[str, ...],
    contenders: tuple[str, ...],
    seeds: tuple[float, ...],
    learning_rates: tuple[float, ...],
    steps: int | None,
    peer_scripts: Path | None,
    peer_python: str,
    threads: int,
    out: Path,
) -> None:
    """The five methods before and after, beside diffusers' example scripts when their folder is given."""
    out = out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    base = prepare_base(BASE, out / "base-float32")
    peer = Peer(scripts=peer_scripts.resolve(), python=peer_python, base=base) if peer_scripts else None
    runner = Runner(out=out, base=base, peer=peer, threads=threads, say=click.echo)
    methods = [METHODS[name] for name in names] or list(METHODS.values())
    training_seeds = [int(seed) for seed in seeds]
    for method in methods:
        runner.make_base(method.subject)
        competing = method.competing(contenders, with_peer=peer is not None)
        rates = learning_rates or (method.learning_rates if peer else method.learning_rates[:1])
        run_method(runner, method, competing, rates, training_seeds, steps)
    # Imported only now: this process must stay small while others are measured.
    from bench.methods.report import write_report

    click.echo(write_report(out, methods, steps, training_seeds))


def run_method(
    runner: Runner,
    method: Method,
    contenders: list[Contender],
    rates: tuple[float, ...],
    seeds: list[int],
    steps: int | None,
) -> None:
    """All rates with the first seed, then each contender's best rate with the others."""
    wanted_steps = steps or method.steps
    for run in search_runs(method, contenders, rates, seeds[0], wanted_steps):
        runner.make(run)
    for seed in seeds[1:]:
        for contender in contenders:
            results = load_results(runner.out, method, contender, wanted_steps)
            rate = best_learning_rate(results, seeds[0], method.subject.class_words)
            if rate is not None:
                runner.make(Run(method=method, contender=contender, learning_rate=rate, seed=seed, steps=wanted_steps))


if __name__ == "__main__":
    main()
