"""How training images and their masks come to the size that the model learns at: buckets, crops, flips.

Pure functions of sizes and of PIL images. Sizes are (width, height) in pixels, as in PIL; tensors and SDXL's conditions
have the height first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from torch.nn.functional import adaptive_avg_pool2d

Size = tuple[int, int]


class SizeConditions(NamedTuple):
    """What SDXL is told of an image's size and crop (Podell et al. 2023, section 2.2), in the order of its time ids.

    The crop's offsets are in pixels of the resized image, as in diffusers' SDXL training scripts: of the mirrored one
    where it was mirrored.
    """

    original_height: int
    original_width: int
    crop_top: int
    crop_left: int
    target_height: int
    target_width: int


class Crop(NamedTuple):
    """The part of an image that is kept, in its own pixels, and by how much that part is then resized."""

    left: float
    top: float
    width: float
    height: float
    scale: float


def buckets(resolution: int, multiple: int, max_aspect: float = 2.0) -> list[Size]:
    """Sizes of about the area resolution² and no more, from tall to wide: aspect-ratio buckets (NovelAI 2022).

    Args:
        resolution: side of the square among them; a multiple of `multiple`.
        multiple: of which every side is one.
        max_aspect: of the longer side to the shorter, at least 1.
    """
    sizes = set()
    for short_side in range(multiple, resolution + 1, multiple):
        long_side = resolution**2 // (short_side * multiple) * multiple
        if long_side <= max_aspect * short_side:
            sizes |= {(short_side, long_side), (long_side, short_side)}
    return sorted(sizes, key=lambda size: (size[0] / size[1], size))


def choose_bucket(width: int, height: int, buckets: Sequence[Size]) -> Size:
    """The bucket that needs the least of an image of this size cropped: the nearest in the logarithm of its aspect."""
    return min(buckets, key=lambda size: abs(math.log(width * size[1]) - math.log(height * size[0])))


def crop_to(source: Size, size: Size, position: tuple[float, float]) -> Crop:
    """The largest part of a `source` image with the aspect of `size`.

    Args:
        position: where, from (0, 0), the left and the top, to (1, 1); (0.5, 0.5) is the centre.
    """
    scale = max(size[0] / source[0], size[1] / source[1])
    width, height = min(size[0] / scale, source[0]), min(size[1] / scale, source[1])
    return Crop((source[0] - width) * position[0], (source[1] - height) * position[1], width, height, scale)


def fit(
    image: Image.Image,
    size: Size,
    *,
    position: tuple[float, float] = (0.5, 0.5),
    flip: bool = False,
    resampling: Image.Resampling = Image.Resampling.LANCZOS,
) -> tuple[Image.Image, SizeConditions]:
    """The image resized so that it covers `size`, cropped to it, and mirrored if asked for.

    At the centre it is `PIL.ImageOps.fit`. A mask goes through the same with `Image.Resampling.BOX`, which averages and
    never overshoots.

    Args:
        image: upright.
        position: of the crop, see `crop_to`.
    """
    crop = crop_to(image.size, size, position)
    box = (crop.left, crop.top, crop.left + crop.width, crop.top + crop.height)
    fitted = image.resize(size, resampling, box=box)
    right = image.width - crop.left - crop.width
    conditions = SizeConditions(
        original_height=image.height,
        original_width=image.width,
        crop_top=round(crop.top * crop.scale),
        crop_left=round((right if flip else crop.left) * crop.scale),
        target_height=size[1],
        target_width=size[0],
    )
    return ImageOps.mirror(fitted) if flip else fitted, conditions


def random_position(generator: torch.Generator) -> tuple[float, float]:
    """A position for `fit`, uniform over all crops."""
    across, down = torch.rand(2, generator=generator).tolist()
    return across, down


def latent_mask(mask: Image.Image, latent_height: int, latent_width: int) -> torch.Tensor:
    """A fitted mask at the size of the latents: [latent_height, latent_width], each value the mean over its pixels.

    0 is black, where the loss does not count, and 1 white.
    """
    grey = torch.from_numpy(np.array(mask.convert("L"), dtype=np.float32)) / 255
    return adaptive_avg_pool2d(grey[None], (latent_height, latent_width))[0]
