"""A contact sheet shows every image whole, in its place, and says what it is."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from services.trainer.training.sample_grid import grid

PAPER = (232, 232, 232)


def plain(colour: tuple[int, int, int], height: int = 128, width: int = 128) -> torch.Tensor:
    return torch.tensor(colour, dtype=torch.uint8).expand(height, width, 3).contiguous()


def pixels(png: bytes) -> np.ndarray:
    image = Image.open(io.BytesIO(png))
    assert image.format == "PNG"
    assert image.mode == "RGB"
    return np.array(image)


def where(sheet: np.ndarray, colour: tuple[int, int, int]) -> tuple[int, int, int, int]:
    """Top, left, height and width of the one rectangle of a colour."""
    ys, xs = np.nonzero((sheet == colour).all(axis=2))
    height, width = ys.max() - ys.min() + 1, xs.max() - xs.min() + 1
    assert len(ys) == height * width
    return ys.min(), xs.min(), height, width


def test_images_stand_in_rows_and_columns_beside_their_labels() -> None:
    colours = [[(200, 0, 0), (0, 200, 0), (0, 0, 200)], [(90, 0, 0), (0, 90, 0), (0, 0, 90)]]
    sheet = pixels(grid([[plain(c) for c in row] for row in colours], ["base", "adapter"], ["a fox", "a cat", "a dog"]))
    places = [[where(sheet, colour) for colour in row] for row in colours]
    assert all(place[2:] == (128, 128) for row in places for place in row)
    assert len({place[0] for place in places[0]}) == 1
    assert len({row[1][1] for row in places}) == 1
    assert places[0][0][1] < places[0][1][1] < places[0][2][1]
    assert places[0][0][0] < places[1][0][0]
    top, left = places[0][0][:2]
    assert (sheet[:top, left : left + 128] < 128).any(), "the first column's label"
    assert (sheet[top : top + 128, :left] < 128).any(), "the first row's label"


def test_without_labels_there_is_no_room_for_them() -> None:
    sheet = pixels(grid([[plain((200, 0, 0))]], [""], [""]))
    assert where(sheet, (200, 0, 0)) == (6, 6, 128, 128)
    assert sheet.shape == (140, 140, 3)


@pytest.mark.parametrize(("height", "width", "shown"), [(1024, 1024, (256, 256)), (1024, 512, (256, 128))])
def test_large_images_are_shown_whole_and_smaller(height: int, width: int, shown: tuple[int, int]) -> None:
    sheet = pixels(grid([[plain((200, 0, 0), height, width)]], ["a"], ["b"]))
    assert where(sheet, (200, 0, 0))[2:] == shown


def test_a_row_may_be_short() -> None:
    sheet = pixels(grid([[plain((200, 0, 0))], [plain((0, 200, 0)), plain((0, 0, 200))]], ["", ""], ["", ""]))
    top, left = where(sheet, (200, 0, 0))[:2]
    assert (sheet[top : top + 128, left + 134 : left + 262] == PAPER).all()


@pytest.mark.parametrize(
    "label", ["a sks fox in the rain " * 90, "x" * 2000, "línea\nnueva\tテスト 🦊", "ab " * 3 + "y" * 200]
)
def test_no_label_reaches_into_an_image_or_another_label(label: str) -> None:
    row = [plain((200, 0, 0)), plain((0, 200, 0))]
    sheet = pixels(grid([row, [plain((0, 0, 200))]], [label, ""], [label, ""]))
    top, left, _, _ = where(sheet, (200, 0, 0))
    assert where(sheet, (0, 200, 0))[2:] == where(sheet, (0, 0, 200))[2:] == (128, 128)
    assert (sheet[:top, left + 128 :] == PAPER).all()
    assert (sheet[top + 128 :, :left] == PAPER).all()


def test_every_image_has_labels() -> None:
    with pytest.raises(AssertionError, match="each column"):
        grid([[plain((0, 0, 0))] * 2], ["base"], ["one"])
    with pytest.raises(AssertionError, match="each row"):
        grid([[plain((0, 0, 0))]] * 2, ["base"], ["one"])
