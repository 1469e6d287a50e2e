"""Contact sheets: images in rows and columns, with a label to each row and column."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence

import torch
from PIL import Image, ImageDraw, ImageFont

_MIN_CELL, _MAX_CELL = 96, 256
_GAP = 6
_FONT_SIZE = 13
_LINE_HEIGHT = 17
_MAX_COLUMN_LABEL_LINES = 4
_PAPER, _INK = "#e8e8e8", "black"
_ELLIPSIS = "..."

_FONT = ImageFont.load_default(_FONT_SIZE)


def grid(rows: Sequence[Sequence[torch.Tensor]], row_labels: Sequence[str], column_labels: Sequence[str]) -> bytes:
    """A PNG of images, uint8 [height, width, 3] on the CPU, one label to the left of each row and above each column.

    Images are shown whole in square cells, of at most 256 pixels so that a sheet of large ones stays a picture and not
    a download. Labels are wrapped; what does not fit ends in an ellipsis. Rows may be shorter than there are columns.
    """
    assert rows, "at least one row"
    assert len(rows) == len(row_labels), "one label for each row"
    assert all(len(row) <= len(column_labels) for row in rows), "a label for each column"
    largest = max((side for row in rows for image in row for side in image.shape[:2]), default=_MAX_CELL)
    cell = min(max(largest, _MIN_CELL), _MAX_CELL)
    row_texts = [_wrap(label, cell, cell // _LINE_HEIGHT) for label in row_labels]
    column_texts = [_wrap(label, cell, _MAX_COLUMN_LABEL_LINES) for label in column_labels]
    left = _GAP + (cell + _GAP if any(row_labels) else 0)
    top = _GAP + (max(map(len, column_texts)) * _LINE_HEIGHT + _GAP if any(column_labels) else 0)
    pitch = cell + _GAP
    sheet = Image.new("RGB", (left + pitch * len(column_labels), top + pitch * len(rows)), _PAPER)
    draw = ImageDraw.Draw(sheet)
    for j, lines in enumerate(column_texts):
        _write(draw, lines, left + j * pitch, _GAP)
    for i, row in enumerate(rows):
        _write(draw, row_texts[i], _GAP, top + i * pitch)
        for j, image in enumerate(row):
            _paste(sheet, image, left + j * pitch, top + i * pitch, cell)
    file = io.BytesIO()
    sheet.save(file, format="PNG")
    return file.getvalue()


def _paste(sheet: Image.Image, image: torch.Tensor, x: int, y: int, cell: int) -> None:
    """An image in the middle of its cell, made smaller where it is too large."""
    picture = Image.fromarray(image.numpy())
    picture.thumbnail((cell, cell), Image.Resampling.LANCZOS)
    sheet.paste(picture, (x + (cell - picture.width) // 2, y + (cell - picture.height) // 2))


def _write(draw: ImageDraw.ImageDraw, lines: Sequence[str], x: int, y: int) -> None:
    for i, line in enumerate(lines):
        draw.text((x, y + i * _LINE_HEIGHT), line, fill=_INK, font=_FONT)


def _wrap(text: str, width: int, max_lines: int) -> list[str]:
    """Lines no wider than so many pixels."""
    lines = [""]
    for piece in (piece for word in text.split() for piece in _pieces(word, width)):
        line = f"{lines[-1]} {piece}".lstrip()
        if _FONT.getlength(line) <= width:
            lines[-1] = line
        elif len(lines) < max_lines:
            lines.append(piece)
        else:
            lines[-1] = _fitting(lines[-1], width - _FONT.getlength(_ELLIPSIS)) + _ELLIPSIS
            break
    return lines


def _pieces(word: str, width: int) -> Iterator[str]:
    """The word, or, where it is too wide for a line, its parts."""
    while len(head := _fitting(word, width)) < len(word):
        yield head
        word = word[len(head) :]
    yield word


def _fitting(text: str, width: float) -> str:
    """The longest beginning that is no wider than so many pixels, at least one character."""
    end = 1
    while end < len(text) and _FONT.getlength(text[: end + 1]) <= width:
        end += 1
    return text[:end]
