"""A picture of many pictures: the training images on top, below them a row for each prompt, base beside adapter."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

CELL = 128
GAP = 6
MARGIN = 28
LABEL_WIDTH = 200
COLUMN_GAP = 30
HEADING_HEIGHT = 64
INK, SOFT, PAPER, RULE = "#1d2329", "#69737d", "#f6f7f9", "#d9dde2"


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """A heading, a smaller line below it, and a row of images for each prompt."""

    title: str
    note: str
    rows: Sequence[Sequence[Image.Image]]


def draw_contact_sheet(
    title: str, training: Sequence[Image.Image], labels: Sequence[str], columns: Sequence[Column]
) -> Image.Image:
    """The sheet; every image takes CELL pixels a side, every label belongs to a row."""
    widths = [len(column.rows[0]) * (CELL + GAP) - GAP for column in columns]
    width = 2 * MARGIN + LABEL_WIDTH + sum(widths) + COLUMN_GAP * (len(columns) - 1)
    grid_top = MARGIN + 56 + CELL + 24
    height = grid_top + HEADING_HEIGHT + len(labels) * (CELL + GAP) - GAP + MARGIN
    sheet = Image.new("RGB", (width, height), PAPER)
    _draw_strip(sheet, title, training)
    rows_top = grid_top + HEADING_HEIGHT
    _draw_labels(sheet, rows_top, labels)
    left = MARGIN + LABEL_WIDTH
    for column, column_width in zip(columns, widths, strict=True):
        _draw_column(sheet, left, grid_top, column)
        left += column_width + COLUMN_GAP
    return sheet


def _draw_strip(sheet: Image.Image, title: str, training: Sequence[Image.Image]) -> None:
    draw = ImageDraw.Draw(sheet)
    draw.text((MARGIN, MARGIN), title, fill=INK, font=_font(26))
    top = MARGIN + 56
    draw.multiline_text((MARGIN, top + 8), "what it\nlearnt from", fill=SOFT, font=_font(18), spacing=6)
    _draw_row(sheet, MARGIN + LABEL_WIDTH, top, training)
    line = top + CELL + 18
    draw.line((MARGIN, line, sheet.width - MARGIN, line), fill=RULE, width=2)


def _draw_labels(sheet: Image.Image, top: int, labels: Sequence[str]) -> None:
    draw = ImageDraw.Draw(sheet)
    for row, label in enumerate(labels):
        middle = top + row * (CELL + GAP) + CELL // 2
        draw.multiline_text(
            (MARGIN, middle), textwrap.fill(label, 20), fill=INK, font=_font(18), anchor="lm", spacing=6
        )


def _draw_column(sheet: Image.Image, left: int, top: int, column: Column) -> None:
    draw = ImageDraw.Draw(sheet)
    draw.text((left, top + 6), column.title, fill=INK, font=_font(20))
    draw.text((left, top + 34), column.note, fill=SOFT, font=_font(15))
    for row, images in enumerate(column.rows):
        _draw_row(sheet, left, top + HEADING_HEIGHT + row * (CELL + GAP), images)


def _draw_row(sheet: Image.Image, left: int, top: int, images: Sequence[Image.Image]) -> None:
    for index, image in enumerate(images):
        sheet.paste(image.convert("RGB").resize((CELL, CELL)), (left + index * (CELL + GAP), top))


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own font: the same on every machine."""
    return ImageFont.load_default(size=size)
