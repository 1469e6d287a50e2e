from __future__ import annotations

import json
from pathlib import Path

import pytest

from atelier.cli.image_folder import read_image_folder
from atelier.errors import InvalidArgumentError

FOX = Path(__file__).resolve().parents[2] / "examples" / "fox"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b.JPG", "a.png", ".hidden"):
        (tmp_path / name).write_bytes(name.encode())
    return tmp_path


def test_images_come_by_name_with_their_captions(folder: Path) -> None:
    (folder / "metadata.jsonl").write_text(json.dumps({"file_name": "b.JPG", "text": "a fox"}) + "\n\n")
    assert read_image_folder(folder).images == [("a.png", b"a.png", ""), ("b.JPG", b"b.JPG", "a fox")]


def test_captions_are_optional(folder: Path) -> None:
    assert [caption for _, _, caption in read_image_folder(folder).images] == ["", ""]


def test_captions_may_be_in_another_column(folder: Path) -> None:
    (folder / "metadata.jsonl").write_text(json.dumps({"file_name": "a.png", "text": 3, "prompt": "a fox"}))
    assert read_image_folder(folder, caption_column="prompt").images[0] == ("a.png", b"a.png", "a fox")


def test_captions_may_be_in_files(folder: Path) -> None:
    (folder / "metadata.jsonl").write_text(json.dumps({"file_name": "a.png", "text": "a cat"}))
    (folder / "b.txt").write_text("a fox\n")
    assert [caption for _, _, caption in read_image_folder(folder).images] == ["a cat", "a fox"]


def test_two_captions_for_an_image_name_both_places(folder: Path) -> None:
    (folder / "metadata.jsonl").write_text(json.dumps({"file_name": "a.png", "text": ""}))
    (folder / "a.txt").write_text("a fox")
    with pytest.raises(InvalidArgumentError, match=r"a\.png: has two captions, .*a\.txt and .*metadata\.jsonl:1"):
        read_image_folder(folder)


def test_a_mask_is_no_image(folder: Path) -> None:
    (folder / "a-mask.png").write_bytes(b"mask")
    (folder / "a.txt").write_text("a fox")
    (folder / "metadata.jsonl").write_text(json.dumps({"file_name": "a.png", "mask_file_name": "a-mask.png"}))
    found = read_image_folder(folder)
    assert found.images == [("a.png", b"a.png", "a fox"), ("b.JPG", b"b.JPG", "")]
    assert found.masks == {"a.png": ("a-mask.png", b"mask")}
    assert found.size_bytes == len("a.png" + "b.JPG" + "mask")


def test_the_example_is_complete() -> None:
    images = read_image_folder(FOX).images
    assert len(images) == 5
    assert all(caption for _, _, caption in images)


def test_a_file_that_is_no_image_is_named(folder: Path) -> None:
    (folder / "notes.txt").write_text("")
    with pytest.raises(InvalidArgumentError, match=r"notes\.txt: is not part of a dataset"):
        read_image_folder(folder)


def test_a_folder_inside_is_named(folder: Path) -> None:
    (folder / "more.png").mkdir()
    with pytest.raises(InvalidArgumentError, match=r"more\.png: is not part of a dataset"):
        read_image_folder(folder)


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (b"{", "metadata.jsonl:1: is not JSON"),
        (b"[]", "metadata.jsonl:1: must be an object"),
        (b'{"file_name": "a.png"}', "metadata.jsonl:1: must be an object"),
        (b'{"file_name": "a.png", "text": 3}', "metadata.jsonl:1: must be an object"),
        (b'{"file_name": "c.png", "text": ""}', "metadata.jsonl:1: file_name is 'c.png', which is no image"),
        (b'{"file_name": "a.png", "text": ""}\n' * 2, "metadata.jsonl:2: file_name 'a.png' has a line already"),
        (b'{"file_name": "a.png", "mask_file_name": 3}', "metadata.jsonl:1: must be an object"),
        (b'{"file_name": "a.png", "mask_file_name": "c.png"}', "metadata.jsonl:1: mask_file_name is 'c.png', which is"),
        (b'{"file_name": "a.png", "mask_file_name": "../b.JPG"}', "metadata.jsonl:1: mask_file_name is '../b.JPG'"),
        (b'{"file_name": "a.png", "mask_file_name": "a.png"}', "metadata.jsonl:1: file_name is 'a.png', which is no"),
        (
            b'{"file_name": "a.png", "mask_file_name": "m.png"}\n{"file_name": "b.JPG", "mask_file_name": "m.png"}',
            "metadata.jsonl:2: mask_file_name 'm.png' is another image's mask already",
        ),
        (b"\xff", "is not UTF-8"),
    ],
)
def test_wrong_captions_name_the_line(folder: Path, lines: bytes, words: str) -> None:
    (folder / "metadata.jsonl").write_bytes(lines)
    (folder / "m.png").write_bytes(b"m.png")
    with pytest.raises(InvalidArgumentError) as caught:
        read_image_folder(folder)
    assert words in caught.value.message
