"""The `atelier` command: its subcommands, and what its exit status means.

0 success; 1 a service's error, or a job that did not succeed; 2 wrong usage; 130 interrupted.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import click

from atelier import __version__
from atelier.cli.adapters import adapters
from atelier.cli.bases import bases
from atelier.cli.dataset import dataset
from atelier.cli.generate import generate
from atelier.cli.jobs import jobs
from atelier.cli.maintenance import registry
from atelier.cli.output import describe
from atelier.cli.session import Session
from atelier.cli.signing import signing_key
from atelier.cli.tokens import tokens
from atelier.cli.train import submit, train
from atelier.cli.up import up
from atelier.errors import AtelierError

INTERRUPTED = 130


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead of tables.")
@click.version_option(__version__, prog_name="atelier")
@click.pass_context
def cli(context: click.Context, as_json: bool) -> None:
    """Personalize text-to-image diffusion models.

    The services are found by ATELIER_REGISTRY, ATELIER_TRAINER and ATELIER_INFERENCE (HOST:PORT each) with the
    credential ATELIER_TOKEN, or where `atelier up` runs on this machine. ATELIER_CA_FILE makes them speak TLS.
    """
    context.obj = Session(as_json=as_json)


for command in (up, dataset, train, submit, jobs, adapters, bases, generate, tokens, registry, signing_key):
    cli.add_command(command)


def run(arguments: Sequence[str]) -> int:
    """Runs one command line and returns its exit status; errors become one line on standard error."""
    try:
        status = cli.main(list(arguments), prog_name="atelier", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except click.Abort:
        return INTERRUPTED
    except (AtelierError, OSError) as error:
        click.echo(describe(error) if isinstance(error, AtelierError) else f"Error: {error}", err=True)
        return 1
    return status if isinstance(status, int) else 0


def main() -> None:
    """Entry point of the `atelier` command."""
    sys.exit(run(sys.argv[1:]))
