"""`atelier dataset`: images to learn from."""

from __future__ import annotations

from pathlib import Path

import click

from atelier.cli.image_folder import CAPTION_COLUMN, read_image_folder
from atelier.cli.output import as_document, last_part, local_time, print_document, print_table, progress_bar
from atelier.cli.session import Session, json_option
from atelier.client import TrainerClient
from atelier.pb.trainer.v1 import trainer_pb2 as pb


@click.group()
def dataset() -> None:
    """Images to learn from, with their captions."""


@dataset.command()
@click.argument("folder", metavar="DIR", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--name", required=True, help="The dataset's name: letters a-z, digits and hyphens.")
@click.option("--caption-column", default=CAPTION_COLUMN, show_default=True, help="Of metadata.jsonl.")
@json_option
@click.pass_obj
def create(session: Session, folder: Path, name: str, caption_column: str) -> None:
    """Upload the images of DIR.

    Captions come from its metadata.jsonl (file_name, text) or from NAME.txt beside NAME.png; masks, white where an
    image counts, are the files that metadata.jsonl names (mask_file_name).
    """
    created = upload_dataset(session.trainer, folder, name, caption_column=caption_column)
    if session.as_json:
        print_document(created)
    else:
        _print(created)


@dataset.command("list")
@json_option
@click.pass_obj
def list_(session: Session) -> None:
    """List the datasets by name."""
    datasets = list(session.trainer.datasets())
    if session.as_json:
        print_document({"datasets": [as_document(each) for each in datasets]})
        return
    rows = [(last_part(each.name), len(each.images), local_time(each.create_time)) for each in datasets]
    print_table("Datasets", ("name", "images", "created"), rows)


@dataset.command()
@click.argument("name")
@json_option
@click.pass_obj
def show(session: Session, name: str) -> None:
    """Show a dataset's images and captions."""
    found = session.trainer.dataset(name)
    if session.as_json:
        print_document(found)
    else:
        _print(found)


def upload_dataset(
    trainer: TrainerClient, folder: Path, name: str, *, caption_column: str = CAPTION_COLUMN
) -> pb.Dataset:
    """Creates a dataset of a folder's images, with a progress bar."""
    found = read_image_folder(folder, caption_column=caption_column)
    detail = f"{len(found.images)} images, {found.size_bytes / 1e6:.1f} MB"
    with progress_bar() as progress:
        task = progress.add_task("uploading", total=found.size_bytes, detail=detail)
        return trainer.create_dataset(
            name, found.images, masks=found.masks, on_sent=lambda size: progress.advance(task, size)
        )


def _print(found: pb.Dataset) -> None:
    rows = [(each.file.path, f"{each.width} x {each.height}", each.mask.path, each.caption) for each in found.images]
    print_table(f"Dataset {last_part(found.name)}  {found.digest}", ("image", "pixels", "mask", "caption"), rows)
