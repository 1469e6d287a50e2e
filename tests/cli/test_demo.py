"""What the demo calls a success, and the picture it draws."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from PIL import Image

from examples.demo.__main__ import CONTEXTS, IMAGES
from examples.demo.contact_sheet import CELL, Column, draw_contact_sheet
from examples.demo.report import Drawn, Measured, find_problems
from examples.demo.scores import MeanScores


def problems(*, gain: float, second_load_seconds: float) -> list[str]:
    base, adapter = MeanScores(clip_i=0.5, clip_t=0.8), MeanScores(clip_i=0.5 + gain, clip_t=0.7)
    drawn = Drawn(
        subject="sks fox",
        class_words="fox face",
        contexts=[],
        base=[],
        adapter=[],
        first_load_seconds=1.0,
        second_load_seconds=second_load_seconds,
    )
    return find_problems(Measured(training=[], base=base, adapter=adapter), drawn)


def test_a_clear_gain_and_no_second_load_is_a_success() -> None:
    assert problems(gain=0.06, second_load_seconds=0.0001) == []


@pytest.mark.parametrize(
    ("gain", "seconds", "words"),
    [
        (0.04, 0.0, "CLIP-I is +0.040"),
        (math.nan, 0.0, "CLIP-I is +nan"),
        (0.1, 0.006, "spent 6.0 ms"),
        (0.1, math.nan, "spent nan ms"),
    ],
)
def test_a_small_gain_or_a_second_load_is_a_failure(gain: float, seconds: float, words: str) -> None:
    (problem,) = problems(gain=gain, second_load_seconds=seconds)
    assert words in problem


def test_no_context_of_the_demo_is_in_the_captions() -> None:
    captions = (Path(IMAGES) / "metadata.jsonl").read_text()
    assert not [context for context in CONTEXTS if context in captions]


def test_the_contact_sheet_shows_every_image() -> None:
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (255, 0, 255)]
    red, *others = (Image.new("RGB", (CELL, CELL), colour) for colour in colours)
    columns = [Column(title="a", note="", rows=[others[:2]]), Column(title="b", note="", rows=[others[2:]])]
    sheet = draw_contact_sheet("title", [red], ["on a wall"], columns)
    pixels = list(sheet.get_flattened_data())
    assert [pixels.count(colour) for colour in colours] == [CELL * CELL] * len(colours)
