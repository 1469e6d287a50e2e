"""Buckets, crops and flips: what the model gets to see of an image, and what SDXL is told of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from services.trainer.training.geometry import (
    SizeConditions,
    buckets,
    choose_bucket,
    crop_to,
    fit,
    latent_mask,
    random_position,
)


def picture(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize(("resolution", "multiple"), [(128, 8), (512, 64), (1024, 64), (768, 8)])
def test_buckets_have_about_one_area_and_sides_that_the_model_takes(resolution: int, multiple: int) -> None:
    sizes = buckets(resolution, multiple)
    assert (resolution, resolution) in sizes
    assert {(height, width) for width, height in sizes} == set(sizes)
    for width, height in sizes:
        assert width % multiple == height % multiple == 0
        assert max(width, height) <= 2 * min(width, height)
        assert resolution**2 - multiple * min(width, height) < width * height <= resolution**2


def test_sdxl_buckets_hold_the_usual_sizes() -> None:
    assert {(832, 1216), (896, 1152), (1024, 1024), (1152, 896), (1216, 832)} <= set(buckets(1024, 64))
    assert buckets(1024, 64, max_aspect=1.0) == [(1024, 1024)]


@pytest.mark.parametrize(
    ("size", "bucket"),
    [
        ((4000, 3000), (1152, 896)),
        ((3000, 4000), (896, 1152)),
        ((500, 500), (1024, 1024)),
        ((100, 9000), (768, 1344)),
    ],
)
def test_the_bucket_of_the_nearest_aspect_is_chosen(size: tuple[int, int], bucket: tuple[int, int]) -> None:
    assert choose_bucket(*size, buckets(1024, 64)) == bucket


@pytest.mark.parametrize("source", [(300, 200), (200, 301), (97, 97), (40, 50), (128, 64), (1000, 33)])
@pytest.mark.parametrize("size", [(128, 128), (96, 160), (160, 96)])
def test_at_the_centre_it_is_pillows_fit(source: tuple[int, int], size: tuple[int, int]) -> None:
    image = picture(*source)
    fitted, _ = fit(image, size)
    expected = ImageOps.fit(image, size, Image.Resampling.LANCZOS)
    assert np.abs(np.asarray(fitted, np.int16) - np.asarray(expected, np.int16)).max() <= 1


def test_a_crop_at_a_position_is_that_part_of_the_resized_image() -> None:
    image = picture(200, 100)
    fitted, conditions = fit(image, (50, 50), position=(0.24, 0.9))
    expected = image.resize((100, 50), Image.Resampling.LANCZOS).crop((12, 0, 62, 50))
    assert conditions == SizeConditions(100, 200, 0, 12, 50, 50)
    inside = (slice(None), slice(4, -4))  # near its edges a crop sees no further
    difference = np.asarray(fitted, np.int16)[inside] - np.asarray(expected, np.int16)[inside]
    assert np.abs(difference).max() <= 1


def test_a_flip_mirrors_the_same_crop_and_counts_the_offset_from_the_other_side() -> None:
    image = picture(200, 100)
    plain, before = fit(image, (50, 50), position=(0.2, 0.0))
    flipped, after = fit(image, (50, 50), position=(0.2, 0.0), flip=True)
    assert (np.asarray(flipped) == np.asarray(plain)[:, ::-1]).all()
    assert (before.crop_left, after.crop_left) == (10, 40)


def test_conditions_of_a_small_tall_image() -> None:
    _, conditions = fit(picture(60, 90), (128, 128))
    assert conditions == SizeConditions(
        original_height=90, original_width=60, crop_top=32, crop_left=0, target_height=128, target_width=128
    )


@pytest.mark.parametrize("position", [(0.0, 0.0), (1.0, 1.0), (1 / 3, 2 / 3)])
def test_crops_stay_inside_the_image(position: tuple[float, float]) -> None:
    for width in range(32, 140, 7):
        for height in range(32, 140, 11):
            crop = crop_to((width, height), (96, 160), position)
            assert crop.left >= 0
            assert crop.top >= 0
            fit(picture(width, height), (96, 160), position=position)  # Pillow refuses a box outside


def test_random_positions_repeat_with_their_seed_and_cover_the_image() -> None:
    positions = [random_position(torch.Generator().manual_seed(seed)) for seed in range(50)]
    assert positions == [random_position(torch.Generator().manual_seed(seed)) for seed in range(50)]
    assert all(0 <= value < 1 for position in positions for value in position)
    assert all(min(axis) < 0.2 and max(axis) > 0.8 for axis in zip(*positions, strict=True))


def test_a_mask_is_averaged_into_the_latents() -> None:
    mask = Image.new("L", (64, 32), 0)
    mask.paste(255, (0, 0, 28, 32))
    weights = latent_mask(mask, 4, 8)
    assert weights.shape == (4, 8)
    assert weights[0].tolist() == [1, 1, 1, 0.5, 0, 0, 0, 0]
    assert (weights == weights[0]).all()


def test_a_mask_stays_on_its_image_through_crop_and_flip() -> None:
    mask = Image.new("L", (200, 100), 0)
    mask.paste(255, (100, 0, 200, 100))
    fitted, _ = fit(mask, (64, 64), position=(0.5, 0.0), flip=True, resampling=Image.Resampling.BOX)
    weights = latent_mask(fitted, 8, 8)
    assert (weights[:, :4] == 1).all()
    assert (weights[:, 4:] == 0).all()
