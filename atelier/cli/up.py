"""`atelier up`: every service on this machine."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click
from rich.console import Console

from atelier.local.profile import profile_path, remove_profile, save_profile

if TYPE_CHECKING:
    from atelier.local.stack import Stack

_WATCH_SECONDS = 1.0
_FOLDER = "NAME=PATH"


@click.command()
@click.option("--data-dir", type=click.Path(path_type=Path), default=Path(".data"), show_default=True, help="State.")
@click.option("--port", type=click.IntRange(1024, 65000), default=7600, show_default=True, help="The first of six.")
@click.option("--base", multiple=True, metavar=_FOLDER, help="Base model, PATH or Hub id.  [default: the embedded]")
@click.option("--scorer", multiple=True, metavar=_FOLDER, help="A base model's CLIP scorer; without one, no scores.")
@click.option("--dino", type=click.Path(exists=True, path_type=Path), help="A DINO model's folder, for more scores.")
def up(data_dir: Path, port: int, base: tuple[str, ...], scorer: tuple[str, ...], dino: Path | None) -> None:
    """Every service on this machine, until Ctrl-C."""
    # Not at the top: a client's installation has no services.
    from atelier.diffusion.hub import find_model
    from atelier.local.stack import EMBEDDED_BASES, EMBEDDED_SCORERS, Stack, StackConfig
    from atelier.rpc.options import named_folders

    bases = {name: find_model(str(path)) for name, path in named_folders(base, "--base").items()}
    scorers = named_folders(scorer, "--scorer")
    if not bases:
        bases, scorers = EMBEDDED_BASES, {**EMBEDDED_SCORERS, **scorers}
    config = StackConfig(data_dir=data_dir, base_port=port, bases=bases, scorers=scorers, dino=dino)
    console = Console(stderr=True)
    for signal_number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signal_number, _interrupt)
    try:
        with Stack(config) as stack:
            _run(stack, console)
    except KeyboardInterrupt:
        console.print("stopped")


def _run(stack: Stack, console: Console) -> NoReturn:
    stack.start(lambda event: console.print(f"[green]✓[/] {event}"))
    save_profile({**stack.addresses, "token": stack.token})
    try:
        _print_addresses(stack)
        while True:
            time.sleep(_WATCH_SECONDS)
            stack.check_alive()
    finally:
        remove_profile()
        console.print("stopping…")


def _interrupt(*_: object) -> NoReturn:
    """Ends whatever goes on, once: what follows is stopping, which is not to be interrupted."""
    for signal_number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signal_number, signal.SIG_IGN)
    raise KeyboardInterrupt


def _print_addresses(stack: Stack) -> None:
    for name, address in stack.addresses.items():
        click.echo(f"export ATELIER_{name.upper()}={address}")
    click.echo(f"export ATELIER_TOKEN={stack.token}")
    click.echo(f"# other commands of this user find the services by {profile_path()}; Ctrl-C stops them")
