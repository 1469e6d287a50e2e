"""`atelier bases`: the base models that the registry knows, and compares adapters with."""

from __future__ import annotations

from pathlib import Path

import click

from atelier.cli.output import as_document, local_time, print_document, print_table
from atelier.cli.session import Session, json_option
from atelier.diffusion.base_layers import describe_base


@click.group()
def bases() -> None:
    """Base models that the registry knows. Adapters can be published for these alone."""


@bases.command()
@click.argument("base", metavar="NAME=PATH")
@json_option
@click.pass_obj
def register(session: Session, base: str) -> None:
    """Tell the registry of the base model in the diffusers folder PATH. Takes a token with the scope OPERATOR."""
    name, separator, path = base.partition("=")
    if not (name and separator and path):
        raise click.BadParameter(f"{base!r} is not of the form NAME=PATH")
    known = session.base_models.register(describe_base(Path(path), name))
    if session.as_json:
        print_document(known)
        return
    counts = ", ".join(f"{each.component} {len(each.layers)}" for each in known.components)
    click.echo(f"{known.base_model.model} is {known.base_model.digest}; layers: {counts}")


@bases.command("list")
@json_option
@click.pass_obj
def list_(session: Session) -> None:
    """List the base models."""
    found = list(session.base_models.base_models())
    if session.as_json:
        print_document({"base_models": [as_document(each) for each in found]})
        return
    rows = [
        (each.base_model.model, each.family, each.base_model.digest, local_time(each.create_time)) for each in found
    ]
    print_table("Base models", ("name", "family", "digest", "registered"), rows)
