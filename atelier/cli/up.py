"""`atelier up`: every service on this machine."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console

from atelier.local.profile import profile_path, remove_profile, save_profile

if TYPE_CHECKING:
    from atelier.local.stack import Stack

_WATCH_SECONDS = 1.0


@click.command()
@click.option("--data-dir", type=click.Path(path_type=Path), default=Path(".data"), show_default=True, help="State.")
@click.option("--port", type=click.IntRange(1024, 65000), default=7600, show_default=True, help="The first of six.")
@click.option("--base", multiple=True, metavar="NAME=PATH", help="Base model; the embedded one unless given.")
def up(data_dir: Path, port: int, base: tuple[str, ...]) -> None:
    """Every service on this machine, until Ctrl-C."""
    from atelier.local.stack import EMBEDDED_BASES, Stack, StackConfig  # a client's installation has no services

    stop = threading.Event()
    for signal_number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signal_number, lambda *_: stop.set())
    bases = {name: Path(path) for name, _, path in (entry.partition("=") for entry in base)}
    config = StackConfig(data_dir=data_dir, base_port=port, bases=bases or EMBEDDED_BASES)
    console = Console(stderr=True)
    with Stack(config) as stack:
        stack.start(lambda event: console.print(f"[green]✓[/] {event}"))
        save_profile({**stack.addresses, "token": stack.token})
        try:
            _print_addresses(stack)
            while not stop.wait(_WATCH_SECONDS):
                stack.check_alive()
        finally:
            remove_profile()
            console.print("stopping…")


def _print_addresses(stack: Stack) -> None:
    for name, address in stack.addresses.items():
        click.echo(f"export ATELIER_{name.upper()}={address}")
    click.echo(f"export ATELIER_TOKEN={stack.token}")
    click.echo(f"# other commands of this user find the services by {profile_path()}; Ctrl-C stops them")
