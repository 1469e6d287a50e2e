"""What about a job's images may spoil its result, told in words. A warning never stops a job.

The checks know of an image only what its dataset's row keeps since the upload: sizes, hashes and captions, no pixels.
Rows from before some of these facts were kept give fewer warnings. Needs no torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from PIL import Image

from services.trainer.concepts import has_word

MAX_NAMES = 10
MIN_IMAGES = 3
MAX_CROPPED_SHARE = Fraction(1, 3)
"""Just what a photograph of 3:2 loses to a square."""
NEAR_BITS = 4
"""Near duplicates differ in at most so many bits of their hashes."""
NEAR_LEVELS = 16
"""And in at most so many of 255 levels of their mean red, green and blue."""
_HASH_SIDE = 8

Images = Mapping[str, Mapping[str, Any]]
"""Records of images as `tables.DatasetRow.images` has them, by the name that warnings use."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConceptImages:
    """The images of one of a job's concepts, and the word that stands for it, if its method learns one."""

    dataset_id: str
    records: Sequence[Mapping[str, Any]]
    placeholder_token: str = ""


def image_facts(image: Image.Image) -> dict[str, Any]:
    """What the checks need of an RGB image's pixels, as JSON: `dhash` and `mean_color`.

    `dhash` is 64 bits in hexadecimal digits: whether brightness falls from left to right, 8 times in 8 rows (dHash,
    Krawetz 2013). Resizing and compression hardly change it. It knows nothing of colours, so their mean comes along.
    """
    small = image.resize((_HASH_SIDE + 1, _HASH_SIDE), Image.Resampling.BOX)
    grey = np.asarray(small.convert("L"))
    dhash = np.packbits(grey[:, :-1] > grey[:, 1:]).tobytes().hex()
    return {"dhash": dhash, "mean_color": np.asarray(small).mean(axis=(0, 1)).round().astype(int).tolist()}


def check_images(concepts: Sequence[ConceptImages], *, resolution: int, aspect_ratio_buckets: bool) -> list[str]:
    """Warnings about a job's images, one for each kind of trouble; each names at most 10 files and counts the others.

    Args:
        resolution: side of the training images in pixels.
        aspect_ratio_buckets: images keep their shape, rather than being cut to squares.
    """
    named = [_named(concept, with_dataset=len(concepts) > 1) for concept in concepts]
    images = {name: record for group in named for name, record in group.items()}
    return [
        *_too_few(concepts),
        *_exact_duplicates(images),
        *_near_duplicates(images),
        *_too_small(images, resolution, cut_to_square=not aspect_ratio_buckets),
        *(() if aspect_ratio_buckets else _too_long(images)),
        *_captions_missing(named),
        *_captions_without_token(concepts, named),
        *_black_masks(images),
    ]


def _named(concept: ConceptImages, *, with_dataset: bool) -> Images:
    prefix = f"{concept.dataset_id}/" if with_dataset else ""
    return {f"{prefix}{record['path']}": record for record in concept.records}


def _too_few(concepts: Sequence[ConceptImages]) -> Iterator[str]:
    few = {c.dataset_id: len(c.records) for c in concepts if len(c.records) < MIN_IMAGES}
    if few:
        yield f"fewer than {MIN_IMAGES} images: " + _listed([f"dataset {name} has {n}" for name, n in few.items()])


def _exact_duplicates(images: Images) -> Iterator[str]:
    first: dict[str, str] = {}
    pairs = [(name, first.setdefault(record["sha256"], name)) for name, record in images.items()]
    copies = [f"{name} (of {original})" for name, original in pairs if name != original]
    if copies:
        yield f"exact duplicates: {_listed(copies)}"


def _near_duplicates(images: Images) -> Iterator[str]:
    distinct: dict[str, str] = {}
    for name, record in images.items():
        if "dhash" in record:
            distinct.setdefault(record["sha256"], name)
    names = list(distinct.values())
    hashes = np.array([int(images[name]["dhash"], 16) for name in names], np.uint64)
    colors = np.array([images[name]["mean_color"] for name in names], np.int16).reshape(-1, 3)
    copies = []
    for index in range(1, len(names)):
        looks_same = np.bitwise_count(hashes[:index] ^ hashes[index]) <= NEAR_BITS
        is_near = looks_same & (np.abs(colors[:index] - colors[index]) <= NEAR_LEVELS).all(axis=1)
        if is_near.any():
            copies.append(f"{names[index]} (of {names[is_near.argmax()]})")
    if copies:
        yield f"near duplicates: {_listed(copies)}"


def _too_small(images: Images, resolution: int, *, cut_to_square: bool) -> Iterator[str]:
    small = []
    for name, record in images.items():
        width, height = record["width"], record["height"]
        scale = resolution / (min(width, height) if cut_to_square else (width * height) ** 0.5)
        if scale > 1:
            small.append(f"{name} ({scale:.2g} times)")
    if small:
        yield f"enlarged to the resolution of {resolution}: {_listed(small)}"


def _too_long(images: Images) -> Iterator[str]:
    long = []
    for name, record in images.items():
        short_side, long_side = sorted((record["width"], record["height"]))
        lost = 1 - Fraction(short_side, long_side)
        if lost > MAX_CROPPED_SHARE:
            long.append(f"{name} ({float(lost):.0%} lost)")
    if long:
        yield f"cut to a square, which aspect_ratio_buckets would avoid: {_listed(long)}"


def _captions_missing(named: Sequence[Images]) -> Iterator[str]:
    bare_groups = [[name for name, record in images.items() if not record["caption"]] for images in named]
    partly = [bare for bare, images in zip(bare_groups, named, strict=True) if len(bare) < len(images)]
    bare = [name for group in partly for name in group]
    if bare:
        yield f"without a caption while others have one, so the instance prompt stands for it: {_listed(bare)}"


def _captions_without_token(concepts: Sequence[ConceptImages], named: Sequence[Images]) -> Iterator[str]:
    lacking = [
        name
        for concept, images in zip(concepts, named, strict=True)
        for name, record in images.items()
        if concept.placeholder_token
        and record["caption"]
        and not has_word(record["caption"], concept.placeholder_token)
    ]
    if lacking:
        yield f"the caption lacks the placeholder token: {_listed(lacking)}"


def _black_masks(images: Images) -> Iterator[str]:
    black = [name for name, record in images.items() if record.get("mask", {}).get("is_black")]
    if black:
        yield f"masks that are black all over, so nothing of the image counts: {_listed(black)}"


def _listed(names: Sequence[str]) -> str:
    rest = len(names) - MAX_NAMES
    return ", ".join(names[:MAX_NAMES]) + (f" and {rest} more" if rest > 0 else "")
