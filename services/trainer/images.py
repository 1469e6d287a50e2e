"""Is this file an image that can be learnt from?

The bytes decide, not the name: each image is decoded in full once, after its header has shown that it is of
allowed size, so that a decompression bomb is refused before it unfolds.
"""

from __future__ import annotations

import warnings
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from atelier.errors import InvalidArgumentError

FORMATS = ("PNG", "JPEG", "WEBP")
MIN_SIDE = 32
MAX_SIDE = 8192
MAX_PIXELS = 40_000_000
MAX_FILE_BYTES = 20 * 1024 * 1024


def check_image(path: Path, field: str) -> tuple[int, int]:
    """Width and height in pixels of a good image.

    Raises:
        InvalidArgumentError: not an image of an allowed format, of a size that is not allowed, or damaged.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the size check below is stricter
            with Image.open(path, formats=FORMATS) as image:
                _check_size(image, field)
                image.load()
                return image.size
    except UnidentifiedImageError as error:
        raise _bad(field, f"is not a readable image; allowed are {', '.join(FORMATS)}", "IMAGE_UNREADABLE") from error
    except Image.DecompressionBombError as error:
        raise _bad(field, f"unfolds to too many pixels; at most {MAX_PIXELS} are allowed", "IMAGE_SIZE") from error
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise _bad(field, "is damaged: it does not decode to its end", "IMAGE_DAMAGED") from error


def _check_size(image: Image.Image, field: str) -> None:
    width, height = image.size
    if not (MIN_SIDE <= width <= MAX_SIDE and MIN_SIDE <= height <= MAX_SIDE):
        raise _bad(field, f"has {width} × {height} pixels; {MIN_SIDE} to {MAX_SIDE} a side are allowed", "IMAGE_SIZE")
    if width * height > MAX_PIXELS:
        raise _bad(field, f"has {width * height} pixels; at most {MAX_PIXELS} are allowed", "IMAGE_SIZE")
    frames = getattr(image, "n_frames", 1)
    if frames != 1:
        raise _bad(field, f"has {frames} frames; one is allowed", "IMAGE_ANIMATED")


def _bad(field: str, description: str, reason: str) -> InvalidArgumentError:
    return InvalidArgumentError(field, description, reason=reason)
