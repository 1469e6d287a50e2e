"""`atelier adapters delete|undelete|purge|retention`: what goes, and what comes back."""

from __future__ import annotations

import click

from atelier.cli.output import as_document, last_part, local_time, print_document
from atelier.cli.session import Session, json_option
from atelier.client import RegistryClient
from atelier.pb.registry.v1.registry_pb2 import PurgeDeletedResponse, RetentionPolicy

_DAY_SECONDS = 86_400


class _ReferenceType(click.ParamType):
    """An adapter, or a version by its number; its value is (adapter, number or nothing)."""

    name = "NAME[@VERSION]"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        """Fails when what stands behind @ is no number."""
        adapter, at, number = value.partition("@")
        if at and not number.isdecimal():
            self.fail(f"{value!r} names no version by its number, for example {adapter}@3", param, ctx)
        return adapter, number


@click.command()
@click.argument("reference", type=_ReferenceType(), metavar=_ReferenceType.name)
@click.option("--force", is_flag=True, help="An adapter that has versions, too.")
@json_option
@click.pass_obj
def delete(session: Session, reference: tuple[str, str], force: bool) -> None:
    """Delete an adapter, or one version of it. `undelete` brings it back until it is purged."""
    name, number = reference
    registry = session.registry
    gone = registry.delete_version(name, number) if number else registry.delete_adapter(name, force=force)
    if session.as_json:
        print_document(gone)
    else:
        click.echo(f"{gone.name} is deleted; it can be undeleted until {local_time(gone.purge_time)}")


@click.command()
@click.argument("reference", type=_ReferenceType(), metavar=_ReferenceType.name)
@json_option
@click.pass_obj
def undelete(session: Session, reference: tuple[str, str]) -> None:
    """Bring a deleted adapter, or one version of it, back."""
    name, number = reference
    registry = session.registry
    back = registry.undelete_version(name, number) if number else registry.undelete_adapter(name)
    if session.as_json:
        print_document(back)
    else:
        click.echo(f"{back.name} is back")


@click.command()
@click.argument("name", required=False)
@click.option("--dry-run", is_flag=True, help="Only tell what would be removed.")
@json_option
@click.pass_obj
def purge(session: Session, name: str | None, dry_run: bool) -> None:
    """Remove for good what is deleted, of adapter NAME or of all. Takes a token with the scope ADMIN."""
    purged = _purge(session.registry, name, dry_run)
    if session.as_json:
        print_document(purged)
        return
    for each in (*purged.adapters, *purged.versions):
        click.echo(each)
    counts = f"{len(purged.adapters)} adapters and {len(purged.versions)} versions"
    click.echo(f"{counts} {'would be' if dry_run else 'are'} removed for good", err=True)


@click.command()
@click.argument("name")
@click.option("--keep-last", type=click.IntRange(min=0), help="Keep so many of the newest versions; 0 keeps all.")
@click.option("--keep-days", type=click.IntRange(min=1), help="Keep versions younger than that, too.")
@click.option("--dry-run", is_flag=True, help="Change nothing, tell which versions would be deleted.")
@click.option("--apply", "apply_", is_flag=True, help="Delete those versions.")
@json_option
@click.pass_obj
def retention(
    session: Session, name: str, keep_last: int | None, keep_days: int | None, dry_run: bool, apply_: bool
) -> None:
    """Set which versions of adapter NAME are kept, or show it.

    The newest version, and those at which aliases point, always are. With both options a version is kept by either;
    --keep-last 0 alone keeps all.
    """
    registry = session.registry
    adapter = registry.adapter(name)
    if keep_last is not None or keep_days is not None:
        adapter.retention.CopyFrom(_policy(keep_last or 0, keep_days))
        if not dry_run:
            adapter = registry.update_adapter(adapter, ["retention"])
    gone = registry.apply_retention(name, adapter.retention, dry_run=dry_run) if apply_ or dry_run else []
    if session.as_json:
        print_document({"retention": as_document(adapter.retention), "versions": gone})
        return
    click.echo(f"{name} keeps {_shown(adapter.retention)}")
    for version in gone:
        click.echo(f"version {last_part(version)} {'would be' if dry_run else 'is'} deleted")


def _purge(registry: RegistryClient, name: str | None, dry_run: bool) -> PurgeDeletedResponse:
    """What one call after the other has removed."""
    purged = PurgeDeletedResponse()
    while True:
        part = registry.purge_deleted(name, dry_run=dry_run)
        purged.MergeFrom(part)
        if dry_run or name in [last_part(each) for each in part.adapters] or not (part.adapters or part.versions):
            return purged


def _policy(keep_last: int, keep_days: int | None) -> RetentionPolicy:
    policy = RetentionPolicy(keep_last=keep_last)
    if keep_days is not None:
        policy.keep_younger_than.FromSeconds(keep_days * _DAY_SECONDS)
    return policy


def _shown(policy: RetentionPolicy) -> str:
    parts = []
    if policy.keep_last:
        parts.append(f"the last {policy.keep_last} versions")
    if policy.HasField("keep_younger_than"):
        parts.append(f"versions of the last {policy.keep_younger_than.ToSeconds() / _DAY_SECONDS:g} days")
    return " and ".join(parts) or "all versions"
