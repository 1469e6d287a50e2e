"""A folder of training images as people keep it, with captions in `metadata.jsonl` if there are any.

What the images hold is the trainer's to check; here is only checked that every file has a meaning.
"""

from __future__ import annotations

import json
from pathlib import Path

from atelier.errors import InvalidArgumentError

CAPTIONS_FILE = "metadata.jsonl"
SUFFIXES = (".jpeg", ".jpg", ".png", ".webp")


def read_image_folder(folder: Path) -> list[tuple[str, bytes, str]]:
    """(file name, bytes, caption) of each image, by file name; files whose name starts with a dot do not count.

    Raises:
        InvalidArgumentError: a file that is no image, or captions that do not fit the images; names the file.
    """
    paths = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    images = [path for path in paths if path.name != CAPTIONS_FILE]
    for path in images:
        if not path.is_file() or path.suffix.lower() not in SUFFIXES:
            allowed = f"images ({', '.join(SUFFIXES)}) and {CAPTIONS_FILE}"
            raise InvalidArgumentError(str(path), f"is not part of a dataset; a folder may hold {allowed}")
    captions = _read_captions(folder / CAPTIONS_FILE, {path.name for path in images})
    return [(path.name, path.read_bytes(), captions.get(path.name, "")) for path in images]


def _read_captions(path: Path, images: set[str]) -> dict[str, str]:
    captions: dict[str, str] = {}
    for number, line in enumerate(_lines(path), start=1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        file_name, text = _caption(line, where)
        if file_name not in images:
            raise InvalidArgumentError(where, f"file_name is {file_name!r}, which is no image of the folder")
        if file_name in captions:
            raise InvalidArgumentError(where, f"file_name {file_name!r} has a caption already")
        captions[file_name] = text
    return captions


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").split("\n") if path.exists() else []
    except UnicodeDecodeError as error:
        raise InvalidArgumentError(str(path), f"is not UTF-8 text: {error}") from error


def _caption(line: str, where: str) -> tuple[str, str]:
    try:
        entry = json.loads(line)
    except json.JSONDecodeError as error:
        raise InvalidArgumentError(where, f"is not JSON: {error}") from error
    match entry:
        case {"file_name": str(file_name), "text": str(text)}:
            return file_name, text
    raise InvalidArgumentError(where, 'must be an object with the texts "file_name" and "text"')
