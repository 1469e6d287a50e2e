"""`atelier adapters pull|export|import`: files out of the registry and into it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from atelier.cli.output import as_document, last_part, print_document, print_table, progress_bar
from atelier.cli.session import Session, json_option
from atelier.client import BaseModelClient, RegistryClient
from atelier.errors import NotFoundError
from atelier.nearest import did_you_mean
from atelier.pb.common.v1.common_pb2 import BaseModel
from atelier.pb.registry.v1.registry_pb2 import ExportVersionRequest, Version

_Command = TypeVar("_Command", bound=Callable[..., Any])
_REFERENCE = "NAME[@ALIAS|@VERSION]"
_FORMATS = {
    "diffusers": ExportVersionRequest.FORMAT_DIFFUSERS,
    "kohya": ExportVersionRequest.FORMAT_KOHYA,
    "embedding": ExportVersionRequest.FORMAT_EMBEDDING,
}


def _out_option(command: _Command) -> _Command:
    folder = click.Path(file_okay=False, path_type=Path)
    return click.option("--out", required=True, metavar="DIR", type=folder, help="Where to write.")(command)


@click.command()
@click.argument("reference", metavar=_REFERENCE)
@_out_option
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
    _print_files(session, version, paths)


@click.command()
@click.argument("reference", metavar=_REFERENCE)
@click.option("--format", "format_", required=True, type=click.Choice(list(_FORMATS)), help="Whose form.")
@_out_option
@json_option
@click.pass_obj
def export(session: Session, reference: str, format_: str, out: Path) -> None:
    """Write a version's weights to DIR in another program's form.

    kohya: a LoRA for sd-scripts, ComfyUI and A1111. embedding: a textual inversion for A1111 and ComfyUI. diffusers:
    the weights as they are.
    """
    registry = session.registry
    version = registry.resolve(reference)
    with progress_bar() as progress:
        task = progress.add_task("exporting", total=None, detail=format_)
        paths = registry.export_version(
            version, _FORMATS[format_], out, on_received=lambda size: progress.advance(task, size)
        )
    _print_files(session, version, paths)


@click.command("import")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--adapter", required=True, metavar="NAME", help="What it becomes a version of; created when missing.")
@click.option("--base", required=True, metavar="NAME|DIGEST", help="The base model that it is for.")
@click.option("--trigger", "words", multiple=True, metavar="WORD", help="A word that calls up what was learnt.")
@click.option("--instance-prompt", default="", metavar="PROMPT", help="A prompt that calls up what was learnt.")
@json_option
@click.pass_obj
def import_(session: Session, file: Path, adapter: str, base: str, words: Sequence[str], instance_prompt: str) -> None:
    """Publish the LoRA or textual inversion in FILE (safetensors), whatever program made it."""
    registry = session.registry
    version = Version(
        base_model=_find_base(session.base_models, base), trigger_words=words, instance_prompt=instance_prompt
    )
    _create_missing(registry, adapter)
    total = file.stat().st_size
    with progress_bar() as progress:
        task = progress.add_task("uploading", total=total, detail=f"{total / 1e6:.1f} MB")
        version = registry.import_version(adapter, file, version, on_sent=lambda size: progress.advance(task, size))
    if session.as_json:
        print_document(version)
    else:
        click.echo(f"{adapter}@{last_part(version.name)}: {version.digest}")


def _find_base(client: BaseModelClient, wanted: str) -> BaseModel:
    known = [each.base_model for each in client.base_models()]
    found = [each for each in known if wanted in (each.model, each.digest)]
    if not found:
        names = sorted({each.model for each in known})
        raise click.BadParameter(
            f"{wanted!r} is no base model that the registry knows; {did_you_mean(wanted, names)}"
            f"there are {', '.join(names) or 'none'}",
            param_hint="--base",
        )
    if len(found) > 1:
        digests = ", ".join(each.digest for each in found)
        raise click.BadParameter(f"{wanted!r} is the name of several; give one of {digests}", param_hint="--base")
    return found[0]


def _create_missing(registry: RegistryClient, adapter: str) -> None:
    try:
        registry.adapter(adapter)
    except NotFoundError:
        registry.create_adapter(adapter)


def _print_files(session: Session, version: Version, paths: Iterable[Path]) -> None:
    if session.as_json:
        print_document({"version": as_document(version), "files": [str(path) for path in paths]})
        return
    print_table(version.name, ("file", "bytes"), [(path, path.stat().st_size) for path in paths])
