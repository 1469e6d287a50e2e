"""`atelier adapters`: what was learnt. `adapter_files` and `adapter_deletion` have the rest of its commands."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

from atelier.cli.adapter_deletion import delete, purge, retention, undelete
from atelier.cli.adapter_files import export, import_, pull
from atelier.cli.output import as_document, last_part, local_time, print_document, print_table
from atelier.cli.session import Session, json_option
from atelier.pb.registry.v1.registry_pb2 import Adapter, Version

_Command = TypeVar("_Command", bound=Callable[..., Any])


@click.group()
def adapters() -> None:
    """What was learnt: adapters, their versions and aliases."""


for command in (pull, export, import_, delete, undelete, purge, retention):
    adapters.add_command(command)


def _search_options(command: _Command) -> _Command:
    deleted = click.option("--deleted", is_flag=True, help="Deleted ones too.")
    order = click.option("--order-by", default="", metavar="FIELD", help="FIELD or 'FIELD desc'.")
    chosen = click.option("--filter", "filter_", default="", metavar="FILTER", help="Which ones: see docs/registry.md.")
    return chosen(order(deleted(command)))


@adapters.command("list")
@_search_options
@json_option
@click.pass_obj
def list_(session: Session, filter_: str, order_by: str, deleted: bool) -> None:
    """List the adapters, by name unless ordered otherwise: 'tags:style AND create_time > 2026-01-31T00:00:00Z'."""
    found = list(session.registry.adapters(filter=filter_, order_by=order_by, show_deleted=deleted))
    if session.as_json:
        print_document({"adapters": [as_document(adapter) for adapter in found]})
        return
    rows = [
        (
            last_part(each.name),
            last_part(each.latest_version),
            ", ".join(each.tags),
            local_time(each.create_time),
            *_deletion(each, deleted),
            each.description,
        )
        for each in found
    ]
    columns = ("name", "latest", "tags", "created", *(("deleted",) if deleted else ()), "description")
    print_table("Adapters", columns, rows)


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
    rows = [
        (
            last_part(each.name),
            ", ".join(last_part(alias.name) for alias in aliases if alias.version == each.name),
            *_cells(each),
        )
        for each in versions
    ]
    print_table(f"Adapter {name}", ("version", "aliases", *_CELLS), rows)


@adapters.command()
@click.argument("name", required=False)
@click.option("--all", "all_", is_flag=True, help="Of all adapters, in place of NAME.")
@_search_options
@json_option
@click.pass_obj
def versions(session: Session, name: str | None, all_: bool, filter_: str, order_by: str, deleted: bool) -> None:
    """List the versions of adapter NAME, newest first unless ordered otherwise: 'metrics.clip_i > 0.6'."""
    if (name is None) != all_:
        raise click.UsageError("give either NAME or --all")
    found = list(session.registry.versions(name or "-", filter=filter_, order_by=order_by, show_deleted=deleted))
    if session.as_json:
        print_document({"versions": [as_document(version) for version in found]})
        return
    rows = [(each.name.split("/")[3], last_part(each.name), *_deletion(each, deleted), *_cells(each)) for each in found]
    print_table("Versions", ("adapter", "version", *(("deleted",) if deleted else ()), *_CELLS), rows)


@adapters.command()
@click.argument("name")
@click.argument("alias_id", metavar="ALIAS")
@click.argument("version", required=False)
@click.option("--delete", "delete_", is_flag=True, help="Delete the alias, in place of VERSION.")
@click.option("--etag", default="", help="Do it only if this is still the alias's etag.")
@json_option
@click.pass_obj
def alias(session: Session, name: str, alias_id: str, version: str | None, delete_: bool, etag: str) -> None:
    """Point ALIAS of adapter NAME at the version number VERSION."""
    if (version is None) != delete_:
        raise click.UsageError("give either VERSION or --delete")
    if version is None:
        session.registry.delete_alias(name, alias_id, etag=etag)
        if session.as_json:
            print_document({})
        else:
            click.echo(f"{name}@{alias_id} is deleted")
        return
    moved = session.registry.set_alias(name, alias_id, version, etag=etag)
    if session.as_json:
        print_document(moved)
    else:
        click.echo(f"{name}@{alias_id} is version {last_part(moved.version)}; etag {moved.etag}")


@adapters.command()
@click.argument("name")
@click.argument("alias_id", metavar="[ALIAS]", required=False)
@json_option
@click.pass_obj
def history(session: Session, name: str, alias_id: str | None) -> None:
    """List where the aliases of adapter NAME have pointed, the newest move first."""
    moves = list(session.registry.alias_moves(name, filter=f'alias = "{alias_id}"' if alias_id else ""))
    if session.as_json:
        print_document({"moves": [as_document(move) for move in moves]})
        return
    rows = [
        (
            local_time(each.move_time),
            last_part(each.alias),
            last_part(each.old_version) or "–",
            last_part(each.new_version) or "–",
            each.subject,
        )
        for each in moves
    ]
    print_table(f"Moves of aliases of {name}", ("time", "alias", "from", "to", "by"), rows)


@adapters.command()
@click.argument("name")
@click.option("--add", "added", multiple=True, metavar="TAG", help="A tag it gets.")
@click.option("--remove", "removed", multiple=True, metavar="TAG", help="A tag it loses.")
@json_option
@click.pass_obj
def tag(session: Session, name: str, added: Sequence[str], removed: Sequence[str]) -> None:
    """Change the tags by which adapter NAME is found."""
    registry = session.registry
    adapter = registry.adapter(name)
    adapter.tags[:] = sorted({*adapter.tags, *added} - {*removed})
    adapter = registry.update_adapter(adapter, ["tags"])
    if session.as_json:
        print_document(adapter)
    else:
        click.echo(f"{name}: {', '.join(adapter.tags) or 'no tags'}")


_CELLS = ("method", "base model", "words", "instance prompt", "scores", "created")


def _cells(version: Version) -> tuple[str, ...]:
    return (
        version.method,
        version.base_model.model,
        ", ".join(version.trigger_words),
        version.instance_prompt,
        "  ".join(f"{metric} {score:.3f}" for metric, score in sorted(version.metrics.items())),
        local_time(version.create_time),
    )


def _deletion(item: Adapter | Version, wanted: bool) -> tuple[str, ...]:
    if not wanted:
        return ()
    return (local_time(item.delete_time) if item.HasField("delete_time") else "",)
