"""`atelier registry`: the registry's store, for operators: garbage, scrubs, quotas."""

from __future__ import annotations

import click

from atelier.cli.output import as_document, print_document, print_table
from atelier.cli.session import Session, json_option
from atelier.pb.registry.v1 import maintenance_pb2 as pb


@click.group()
def registry() -> None:
    """Keep the registry's store in order. Takes a token with the scope OPERATOR."""


@registry.command()
@click.option("--dry-run", is_flag=True, help="Count what would go; remove nothing.")
@json_option
@click.pass_obj
def gc(session: Session, dry_run: bool) -> None:
    """Remove what nobody has any more. The registry does so by itself at intervals."""
    collected = session.maintenance.collect_garbage(validate_only=dry_run)
    if session.as_json:
        print_document(collected)
        return
    rows = [(name.replace("_", " "), number) for name, number in as_document(collected).items()]
    print_table("Garbage that would go" if dry_run else "Garbage that went", ("what", "how much"), rows)


@registry.command()
@click.option("--limit-bytes", type=click.IntRange(min=0), default=0, help="Read at most so many; 0 means all.")
@json_option
@click.pass_context
def scrub(context: click.Context, limit_bytes: int) -> None:
    """Read stored contents again, those first that were not read for longest. Exits with 1 when some are not sound."""
    session: Session = context.obj
    progress, rotten = pb.ScrubProgress(), []
    for response in session.maintenance.scrub(limit_bytes=limit_bytes):
        if response.WhichOneof("content") == "progress":
            progress = response.progress
        else:
            rotten.append(response.rot)
    if session.as_json:
        print_document({"progress": as_document(progress), "rot": [as_document(each) for each in rotten]})
    else:
        click.echo(f"read {progress.blob_count} contents, {progress.blob_bytes} bytes; {len(rotten)} are not sound")
        if rotten:
            print_table("Rot", ("content", "what is wrong", "versions"), map(_row, rotten))
    if rotten:
        context.exit(1)


@registry.command()
@click.argument("tenant")
@click.option("--max-bytes", type=click.IntRange(min=0), help="Set the most bytes; 0 means no limit.")
@click.option("--max-versions", type=click.IntRange(min=0), help="Set the most versions; 0 means no limit.")
@json_option
@click.pass_obj
def quota(session: Session, tenant: str, max_bytes: int | None, max_versions: int | None) -> None:
    """Show what TENANT may store, or set it."""
    client = session.maintenance
    found = client.quota(tenant)
    if max_bytes is not None or max_versions is not None:
        found = client.set_quota(
            tenant,
            max_stored_bytes=found.max_stored_bytes if max_bytes is None else max_bytes,
            max_versions=found.max_versions if max_versions is None else max_versions,
        )
    if session.as_json:
        print_document(found)
        return
    limits = [("bytes", found.max_stored_bytes), ("versions", found.max_versions)]
    print_table(f"Quota of {tenant}", ("what", "most"), [(what, limit or "no limit") for what, limit in limits])


def _row(rot: pb.Rot) -> tuple[str, str, str]:
    kind = pb.Rot.Kind.Name(rot.kind).removeprefix("KIND_").lower()
    return rot.sha256, kind, "\n".join(rot.versions)
