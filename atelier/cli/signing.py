"""`atelier signing-key`: keys with which a registry signs versions."""

from __future__ import annotations

from pathlib import Path

import click

from atelier.errors import FailedPreconditionError


@click.group("signing-key")
def signing_key() -> None:
    """Keys with which a registry signs the versions that it publishes."""


@signing_key.command()
@click.argument("path", type=click.Path(path_type=Path, dir_okay=False))
def create(path: Path) -> None:
    """Write a private key to PATH, for the registry, and its public key to PATH.pub, for inference."""
    from atelier.signing import create_key_files, public_key_path  # not at the top: clients have no `cryptography`

    try:
        key_id = create_key_files(path)
    except FileExistsError:
        raise FailedPreconditionError(f"{path} is there already; choose another path", reason="FILE_EXISTS") from None
    click.echo(f"private key: {path} (atelier registry: --manifest-key-file)")
    click.echo(f"public key:  {public_key_path(path)} (atelier inference: --trusted-key-file)")
    click.echo(f"key id:      {key_id}")
