"""Warnings about images that may spoil a job."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from services.trainer.image_checks import ConceptImages, check_images, image_facts

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def record(path: str, image: Image.Image, caption: str = "", **more: Any) -> dict[str, Any]:
    facts = {"path": path, "caption": caption, "width": image.width, "height": image.height, **image_facts(image)}
    return {**facts, "sha256": hashlib.sha256(image.tobytes()).hexdigest(), **more}


def blobs(seed: int, size: tuple[int, int] = (200, 200)) -> Image.Image:
    """A smooth picture, as photographs are."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def compressed(image: Image.Image) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=40)
    return Image.open(buffer).convert("RGB")


def warnings(*records: dict[str, Any], buckets: bool = False, token: str = "") -> list[str]:
    concept = ConceptImages(dataset_id="fox", records=records, placeholder_token=token)
    return check_images([concept], resolution=128, aspect_ratio_buckets=buckets)


FINE = [record(f"{index}.png", blobs(index)) for index in range(3)]


@pytest.mark.parametrize("name", ["fox", "fx-style"])
def test_the_examples_are_fine(name: str) -> None:
    paths = sorted((EXAMPLES / name).glob("*.png"))
    assert warnings(*(record(path.name, Image.open(path).convert("RGB")) for path in paths)) == []


def test_too_few_images() -> None:
    assert warnings(*FINE[:2]) == ["fewer than 3 images: dataset fox has 2"]
    assert warnings(*FINE) == []


def test_exact_duplicates_name_the_first_of_them() -> None:
    assert warnings(*FINE, {**FINE[1], "path": "copy.png"}) == ["exact duplicates: copy.png (of 1.png)"]


@pytest.mark.parametrize(
    "change",
    [compressed, lambda image: image.resize((150, 150)), lambda image: ImageEnhance.Brightness(image).enhance(0.95)],
    ids=["compressed", "resized", "darkened"],
)
def test_near_duplicates_are_found_whatever_was_done_to_them(change: Any) -> None:
    changed = record("copy.png", change(blobs(1)))
    assert warnings(*FINE, changed) == ["near duplicates: copy.png (of 1.png)"]


def test_the_same_shape_in_another_color_is_no_duplicate() -> None:
    red, green, blue = blobs(1).split()
    assert warnings(*FINE, record("other.png", Image.merge("RGB", (red.point(lambda v: v // 3), green, blue)))) == []


def test_rows_without_hashes_give_no_warning_of_near_duplicates() -> None:
    old = {name: value for name, value in record("a.png", blobs(1)).items() if name not in ("dhash", "mean_color")}
    assert warnings(*FINE, {**old, "sha256": "0"}, {**old, "path": "b.png", "sha256": "1"}) == []


def test_small_images_say_how_much_they_are_enlarged() -> None:
    small = record("small.png", blobs(7, (64, 90)))
    assert warnings(*FINE, small) == ["enlarged to the resolution of 128: small.png (2 times)"]
    assert warnings(*FINE, record("long.png", blobs(7, (100, 170))), buckets=True) == []


def test_long_images_say_how_much_is_cut() -> None:
    long = record("long.png", blobs(7, (400, 200)))
    expected = "cut to a square, which aspect_ratio_buckets would avoid: long.png (50% lost)"
    assert warnings(*FINE, long, record("fine.png", blobs(8, (300, 200)))) == [expected]
    assert warnings(*FINE, long, buckets=True) == []


def test_captions_missing_for_some_only() -> None:
    captioned = record("9.png", blobs(9), "a fox")
    (warning,) = warnings(*FINE, captioned)
    assert warning.startswith("without a caption while others have one")
    assert warning.endswith(": 0.png, 1.png, 2.png")


def test_captions_that_lack_the_placeholder_token() -> None:
    captions = ["a photo of TOK", "a TOKEN", "TOK, red"]
    captioned = [{**image, "caption": caption} for image, caption in zip(FINE, captions, strict=True)]
    assert warnings(*captioned, token="TOK") == ["the caption lacks the placeholder token: 1.png"]
    assert warnings(*captioned) == []


def test_black_masks() -> None:
    masks = [{"is_black": True}, {"is_black": False}]
    (warning,) = warnings(FINE[0], *({**image, "mask": mask} for image, mask in zip(FINE[1:], masks, strict=True)))
    assert warning.endswith("black all over, so nothing of the image counts: 1.png")


def test_many_names_are_counted() -> None:
    copies = [{**FINE[0], "path": f"copy-{index}.png"} for index in range(13)]
    (warning,) = warnings(*FINE, *copies)
    assert warning.endswith("copy-9.png (of 0.png) and 3 more")


def test_several_concepts_name_their_datasets_and_are_compared_with_each_other() -> None:
    cat = [record(f"{index}.png", blobs(index)) for index in (2, 10, 11)]
    concepts = [ConceptImages(dataset_id="fox", records=FINE), ConceptImages(dataset_id="cat", records=cat)]
    found = check_images(concepts, resolution=128, aspect_ratio_buckets=False)
    assert found == ["exact duplicates: cat/2.png (of fox/2.png)"]
