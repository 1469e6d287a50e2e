"""The measured ceiling: the real subject, cut out of its training images, on the background that each prompt names.

What an adapter could reach at best by CLIP's judgement, since the pasted images *are* the subject. Colours and patterns
are those that the embedded base model was trained on.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from bench.methods.subjects import Context

_COLORS = {
    "white": (255, 255, 255),
    "black": (16, 16, 16),
    "red": (214, 48, 49),
    "orange": (243, 146, 55),
    "yellow": (250, 219, 90),
    "green": (67, 160, 71),
    "teal": (38, 166, 154),
    "blue": (52, 110, 219),
    "purple": (126, 64, 180),
    "brown": (121, 85, 61),
}
_PERIOD = 20
_KEY = (1, 2, 3)
_TOLERANCE = 16


def paste(subject: Image.Image, context: Context) -> Image.Image:
    """A training image's subject in a context's scene."""
    subject = subject.convert("RGB")
    scene = _background(context, subject.width)
    side = round(subject.width * context.scale)
    left, top = ((subject.width - side) // 2 + round(shift * subject.width) for shift in context.shift)
    scene.paste(subject.resize((side, side)), (left, top), _mask(subject).resize((side, side)))
    return scene


def _mask(image: Image.Image) -> Image.Image:
    """White where the subject is: what cannot be reached from the corners through the background's plain colour."""
    filled = image.copy()
    for corner in ((0, 0), (image.width - 1, 0), (0, image.height - 1), (image.width - 1, image.height - 1)):
        ImageDraw.floodfill(filled, corner, _KEY, thresh=_TOLERANCE)
    is_background = (np.asarray(filled) == _KEY).all(axis=2)
    mask = Image.fromarray(np.where(is_background, 0, 255).astype(np.uint8))
    # The rim is blended with the old background: it goes, and the new edge is softened.
    return ImageChops.darker(mask.filter(ImageFilter.MinFilter(3)), mask.filter(ImageFilter.GaussianBlur(0.7)))


def _background(context: Context, size: int) -> Image.Image:
    y, x = np.mgrid[0:size, 0:size].astype(float)
    share = {
        "plain": np.zeros((size, size)),
        "striped": ((x + y) / _PERIOD % 1 < 0.5).astype(float),
        "dotted": (np.hypot(x % _PERIOD - _PERIOD / 2, y % _PERIOD - _PERIOD / 2) < _PERIOD * 0.28).astype(float),
        "gradient": y / size,
        "checkered": (x // _PERIOD + y // _PERIOD) % 2,
    }[context.pattern]
    return Image.fromarray(_mix(_COLORS[context.color], _COLORS[context.second_color], share))


def _mix(first: tuple[int, int, int], second: tuple[int, int, int], share: NDArray[np.float64]) -> NDArray[np.uint8]:
    mixed = np.array(first) * (1 - share[:, :, None]) + np.array(second) * share[:, :, None]
    return mixed.round().astype(np.uint8)
