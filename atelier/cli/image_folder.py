"""A folder of training images as people keep it, with captions and masks if there are any.

A caption is in `metadata.jsonl`, or in a text file of the image's name: `fox.txt` beside `fox.png`. A line of
`metadata.jsonl` is a JSON object with `file_name` and a caption, a mask (`mask_file_name`), or both.

What the images hold is the trainer's to check; here is only checked that every file has a meaning.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atelier.errors import InvalidArgumentError

METADATA_FILE = "metadata.jsonl"
SUFFIXES = (".jpeg", ".jpg", ".png", ".webp")
CAPTION_SUFFIX = ".txt"
CAPTION_COLUMN = "text"


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageFolder:
    """What a folder holds, as `TrainerClient.create_dataset` takes it."""

    images: list[tuple[str, bytes, str]]
    """(file name, bytes, caption) of each image, by file name."""
    masks: dict[str, tuple[str, bytes]]
    """(file name, bytes) of the masks, by the file names of their images."""

    @property
    def size_bytes(self) -> int:
        """Of all files together."""
        contents = [content for _, content, _ in self.images] + [content for _, content in self.masks.values()]
        return sum(map(len, contents))


@dataclass(frozen=True, kw_only=True, slots=True)
class _Line:
    where: str
    file_name: str
    caption: str | None
    mask: str | None


def read_image_folder(folder: Path, *, caption_column: str = CAPTION_COLUMN) -> ImageFolder:
    """The images, captions and masks of a folder; files whose name starts with a dot do not count.

    Args:
        caption_column: name of the captions in the lines of `metadata.jsonl`.

    Raises:
        InvalidArgumentError: a file that has no meaning, or captions and masks that do not fit the images; names the
            file.
    """
    paths = {path.name: path for path in sorted(folder.iterdir()) if not path.name.startswith(".")}
    lines = _read_lines(folder / METADATA_FILE, caption_column)
    masks = {line.mask: line for line in lines if line.mask is not None}
    images = [path for path in paths.values() if _is_image(path) and path.name not in masks]
    by_image = _check_lines(lines, {path.name for path in images}, paths)
    texts = {path.with_suffix(CAPTION_SUFFIX).name for path in images}
    for path in paths.values():
        if not (path.name in {METADATA_FILE, *texts} or _is_image(path)) or not path.is_file():
            allowed = f"images ({', '.join(SUFFIXES)}), their captions ({CAPTION_SUFFIX}) and {METADATA_FILE}"
            raise InvalidArgumentError(str(path), f"is not part of a dataset; a folder may hold {allowed}")
    return ImageFolder(
        images=[(path.name, path.read_bytes(), _caption(path, by_image.get(path.name))) for path in images],
        masks={line.file_name: (name, paths[name].read_bytes()) for name, line in masks.items()},
    )


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES


def _check_lines(lines: list[_Line], images: set[str], paths: dict[str, Path]) -> dict[str, _Line]:
    """The lines by image, when each is about another image of the folder and names a mask of its own."""
    by_image: dict[str, _Line] = {}
    masks: set[str] = set()
    for line in lines:
        if line.file_name not in images:
            raise InvalidArgumentError(line.where, f"file_name is {line.file_name!r}, which is no image of the folder")
        if line.file_name in by_image:
            raise InvalidArgumentError(line.where, f"file_name {line.file_name!r} has a line already")
        if line.mask is not None and (line.mask not in paths or not _is_image(paths[line.mask])):
            raise InvalidArgumentError(line.where, f"mask_file_name is {line.mask!r}, which is no image of the folder")
        if line.mask is not None and line.mask in masks:
            raise InvalidArgumentError(line.where, f"mask_file_name {line.mask!r} is another image's mask already")
        by_image[line.file_name] = line
        masks |= {line.mask} if line.mask is not None else set()
    return by_image


def _caption(image: Path, line: _Line | None) -> str:
    beside = image.with_suffix(CAPTION_SUFFIX)
    written = line.caption if line is not None else None
    if not beside.exists():
        return written or ""
    if line is not None and written is not None:
        raise InvalidArgumentError(str(image), f"has two captions, one in {beside} and one in {line.where}; keep one")
    return _read_text(beside).strip()


def _read_lines(path: Path, caption_column: str) -> list[_Line]:
    text = _read_text(path) if path.exists() else ""
    return [
        _parse_line(line, f"{path}:{number}", caption_column)
        for number, line in enumerate(text.split("\n"), start=1)
        if line.strip()
    ]


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InvalidArgumentError(str(path), f"is not UTF-8 text: {error}") from error


def _parse_line(text: str, where: str, caption_column: str) -> _Line:
    try:
        entry = json.loads(text)
    except json.JSONDecodeError as error:
        raise InvalidArgumentError(where, f"is not JSON: {error}") from error
    fields: dict[str, Any] = entry if isinstance(entry, dict) else {}
    file_name, caption, mask = (fields.get(key) for key in ("file_name", caption_column, "mask_file_name"))
    is_text = all(value is None or isinstance(value, str) for value in (caption, mask))
    if not isinstance(file_name, str) or not is_text or (caption is None and mask is None):
        raise InvalidArgumentError(
            where, f'must be an object with the text "file_name", and "{caption_column}" or "mask_file_name" or both'
        )
    return _Line(where=where, file_name=file_name, caption=caption, mask=mask)
