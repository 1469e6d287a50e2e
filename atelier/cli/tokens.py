"""`atelier tokens`: credentials of people and programs."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import click

from atelier.cli.output import as_document, last_part, local_time, print_document, print_table
from atelier.cli.session import Session, json_option
from atelier.pb.registry.v1.tokens_pb2 import CreateTokenResponse
from atelier.rpc.scopes import SCOPE_NAMES, scope_name, scope_named

BOOTSTRAP_SECONDS = 3600.0
_scope_option = click.option(
    "--scope",
    "scopes",
    type=click.Choice(SCOPE_NAMES, case_sensitive=False),
    multiple=True,
    required=True,
    help="What it allows; may be repeated. ADMIN includes PUBLISHER and TRAINER, each of which includes READER.",
)


@click.group()
def tokens() -> None:
    """Credentials of people and programs. A secret is printed once, when it is made."""


@tokens.command()
@click.option("--id", "token_id", required=True, help="Its name, such as `ci`.")
@_scope_option
@click.option("--expires-days", type=click.IntRange(1, 366), default=90, show_default=True, help="Until it ends.")
@click.option("--description", default="", help="Free text.")
@json_option
@click.pass_obj
def create(session: Session, token_id: str, scopes: tuple[str, ...], expires_days: int, description: str) -> None:
    """Make a token, with at most your own scopes."""
    answer = session.tokens.create(
        token_id,
        [scope_named(name) for name in scopes],
        lifetime=timedelta(days=expires_days),
        description=description,
    )
    _print_secret(session, answer)


@tokens.command("list")
@json_option
@click.pass_obj
def list_(session: Session) -> None:
    """List the tokens, without their secrets."""
    found = list(session.tokens.tokens())
    if session.as_json:
        print_document({"tokens": [as_document(token) for token in found]})
        return
    rows = [
        (
            last_part(each.name),
            ", ".join(map(scope_name, each.scopes)),
            local_time(each.create_time),
            local_time(each.rotate_time),
            local_time(each.expire_time),
            each.description,
        )
        for each in found
    ]
    print_table("Tokens", ("id", "scopes", "created", "rotated", "expires", "description"), rows)


@tokens.command()
@click.argument("token_id", metavar="ID")
@click.option("--overlap-hours", type=click.FloatRange(0, 168), default=24, show_default=True, help="Old secret's end.")
@json_option
@click.pass_obj
def rotate(session: Session, token_id: str, overlap_hours: float) -> None:
    """Give a token a new secret; the old one works on for a while."""
    _print_secret(session, session.tokens.rotate(token_id, overlap=timedelta(hours=overlap_hours)))


@tokens.command()
@click.argument("token_id", metavar="ID")
@click.pass_obj
def revoke(session: Session, token_id: str) -> None:
    """End a token. Services that have seen it lately accept it for up to half a minute."""
    session.tokens.revoke(token_id)
    click.echo(f"revoked {token_id}", err=True)


@tokens.command()
@click.option("--signing-key-file", type=click.Path(exists=True, path_type=Path), required=True, help="The services'.")
@click.option("--tenant", required=True, help="Whom it is for.")
@_scope_option
def bootstrap(signing_key_file: Path, tenant: str, scopes: tuple[str, ...]) -> None:
    """Print a token for an hour, made from the services' signing key: an installation's first credential."""
    # Not at the top: a client's installation has no signing.
    from atelier.rpc.identity import TokenAuthority

    try:
        authority = TokenAuthority.from_file(signing_key_file)
        token = authority.issue(
            tenant=tenant,
            subject="bootstrap",
            scopes=[scope_named(name) for name in scopes],
            lifetime_seconds=BOOTSTRAP_SECONDS,
        )
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    click.echo(token)


def _print_secret(session: Session, answer: CreateTokenResponse) -> None:
    """Nothing but the secret on standard output, so that `$(…)` takes it."""
    if session.as_json:
        print_document(answer)
        return
    token = answer.token
    click.echo(answer.secret)
    listed = ", ".join(map(scope_name, token.scopes))
    click.echo(f"{last_part(token.name)}: {listed}, until {local_time(token.expire_time)}; not shown again", err=True)
