"""How commands print: tables or one JSON document on standard output, everything else on standard error."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from datetime import UTC
from typing import Any

import click
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from atelier.errors import AtelierError, InvalidArgumentError


def describe(error: AtelierError) -> str:
    """An error in one line: what is wrong, each further wrong field, when to retry, and the stable reason."""
    parts = [error.message]
    if isinstance(error, InvalidArgumentError):
        parts += [f"{violation.field}: {violation.description}" for violation in error.violations[1:]]
    if error.retry_after_seconds is not None:
        parts.append(f"retry in {error.retry_after_seconds:g} s")
    return f"Error: {'; '.join(parts)} [{error.reason}]"


def as_document(message: Message) -> dict[str, Any]:
    """A message by the names of its .proto file; unset fields without presence have their defaults."""
    return MessageToDict(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)


def print_document(document: Message | dict[str, Any]) -> None:
    """Prints one JSON document."""
    content = as_document(document) if isinstance(document, Message) else document
    click.echo(json.dumps(content, indent=2, ensure_ascii=False))


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Prints a table; cells are plain text, whatever brackets they hold."""
    table = Table()
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text(str(cell)) for cell in row))
    Console(highlight=False).print(Text(title, style="bold"), table, sep="\n")


def progress_bar() -> Progress:
    """A bar on standard error whose tasks have a `detail` text beside it; it goes away when the work is done.

    Where standard error is no terminal there is no bar.
    """
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=32),
        TextColumn("{task.fields[detail]}", markup=False),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


def last_part(name: str) -> str:
    """The id at the end of a resource name."""
    return name.rpartition("/")[2]


def local_time(timestamp: Timestamp) -> str:
    """A point in time in this machine's zone, to the minute."""
    return timestamp.ToDatetime(tzinfo=UTC).astimezone().strftime("%Y-%m-%d %H:%M")
