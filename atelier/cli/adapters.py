"""`atelier adapters`: what was learnt."""

from __future__ import annotations

from pathlib import Path

import click

from atelier.cli.output import as_document, last_part, local_time, print_document, print_table, progress_bar
from atelier.cli.session import Session, json_option


@click.group()
def adapters() -> None:
    """What was learnt: adapters, their versions and aliases."""


@adapters.command("list")
@json_option
@click.pass_obj
def list_(session: Session) -> None:
    """List the adapters by name."""
    found = list(session.registry.adapters())
    if session.as_json:
        print_document({"adapters": [as_document(adapter) for adapter in found]})
        return
    rows = [
        (last_part(each.name), last_part(each.latest_version), local_time(each.create_time), each.description)
        for each in found
    ]
    print_table("Adapters", ("name", "latest", "created", "description"), rows)


@adapters.command()
@click.argument("name")
@json_option
@click.pass_obj
def show(session: Session, name: str) -> None:
    """Show an adapter's versions and aliases."""
    registry = session.registry
    adapter = registry.adapter(name)
    versions, aliases = list(registry.versions(name)), list(registry.aliases(name))
    if session.as_json:
        lists = {"versions": map(as_document, versions), "aliases": map(as_document, aliases)}
        print_document({"adapter": as_document(adapter), **{key: list(items) for key, items in lists.items()}})
        return
    aliases_of = {
        version.name: [last_part(a.name) for a in aliases if a.version == version.name] for version in versions
    }
    rows = [
        (
            last_part(each.name),
            ", ".join(aliases_of[each.name]),
            each.method,
            each.base_model.model,
            each.instance_prompt,
            "  ".join(f"{metric} {score:.3f}" for metric, score in sorted(each.metrics.items())),
            local_time(each.create_time),
        )
        for each in versions
    ]
    columns = ("version", "aliases", "method", "base model", "instance prompt", "scores", "created")
    print_table(f"Adapter {name}", columns, rows)


@adapters.command()
@click.argument("name")
@click.argument("alias_id", metavar="ALIAS")
@click.argument("version")
@click.option("--etag", default="", help="Move the alias only if this is still its etag.")
@json_option
@click.pass_obj
def alias(session: Session, name: str, alias_id: str, version: str, etag: str) -> None:
    """Point ALIAS of adapter NAME at the version number VERSION."""
    moved = session.registry.set_alias(name, alias_id, version, etag=etag)
    if session.as_json:
        print_document(moved)
    else:
        click.echo(f"{name}@{alias_id} is version {last_part(moved.version)}; etag {moved.etag}")


@adapters.command()
@click.argument("reference", metavar="NAME[@ALIAS|@VERSION]")
@click.option(
    "--out", required=True, metavar="DIR", type=click.Path(file_okay=False, path_type=Path), help="Where to write."
)
@json_option
@click.pass_obj
def pull(session: Session, reference: str, out: Path) -> None:
    """Write a version's files to DIR, which plain diffusers then loads. Every file is checked by its SHA-256."""
    registry = session.registry
    version = registry.resolve(reference)
    total = sum(file.size_bytes for file in version.files)
    with progress_bar() as progress:
        task = progress.add_task("downloading", total=total, detail=f"{total / 1e6:.1f} MB")
        paths = registry.pull(version, out, on_received=lambda size: progress.advance(task, size))
    if session.as_json:
        print_document({"version": as_document(version), "files": [str(path) for path in paths]})
        return
    rows = [(path, file.size_bytes) for path, file in zip(paths, version.files, strict=True)]
    print_table(version.name, ("file", "bytes"), rows)
