"""Images to learn from and their masks: which files are taken, and what their pixels are.

The bytes decide, not the name. A dataset's check and training both read images here, so what is accepted can be
learnt from. An image's header is judged before its pixels: a decompression bomb is refused before it unfolds.
"""

from __future__ import annotations

import struct
import threading
import warnings
from pathlib import Path
from typing import IO

from PIL import ExifTags, Image, UnidentifiedImageError

from atelier.errors import InvalidArgumentError
from atelier.rpc.names import shown

FORMATS = ("PNG", "JPEG", "WEBP")
MIN_SIDE = 32
MAX_SIDE = 8192
MAX_FILE_BYTES = 20 * 1024 * 1024

# What Pillow's parsers raise on bytes that are not what they promise to be.
_DAMAGE = (
    *(OSError, EOFError, SyntaxError, ValueError, TypeError, LookupError, ArithmeticError),
    *(AssertionError, struct.error),
)
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIXTEEN_TO_EIGHT_BITS = [round(value / 257) for value in range(65536)]
# The largest image takes half a gigabyte while it is converted.
_one_at_a_time = threading.Lock()


def open_upright(source: Path | IO[bytes], field: str, name: str) -> Image.Image:
    """The pixels of an image file as RGB: turned as its EXIF says, white where it was transparent.

    16 bits a channel become 8. EXIF that cannot be read counts as none. Of a JPEG that embeds further pictures (MPO),
    such as a depth map, the first is taken.

    Args:
        field: of the request, for errors.
        name: of the file, for errors.

    Raises:
        InvalidArgumentError: not an image of an allowed format, of a size that is not allowed, animated or damaged.
    """
    try:
        with _one_at_a_time, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd EXIF, which is passed over, and of sizes that are refused below
            with Image.open(source, formats=FORMATS) as image:
                _check_header(image, field, name)
                image.load()
                return _as_rgb(_turned(image))
    except UnidentifiedImageError as error:
        description = f"{shown(name)} is not a readable image; allowed are {', '.join(FORMATS)}"
        raise InvalidArgumentError(field, description, reason="IMAGE_UNREADABLE") from error
    except Image.DecompressionBombError as error:
        description = f"{shown(name)} unfolds to too many pixels; at most {MAX_SIDE} a side are allowed"
        raise InvalidArgumentError(field, description, reason="IMAGE_SIZE") from error
    except _DAMAGE as error:
        description = f"{shown(name)} is damaged: it does not decode to its end"
        raise InvalidArgumentError(field, description, reason="IMAGE_DAMAGED") from error


def open_mask(source: Path | IO[bytes], field: str, name: str, *, size: tuple[int, int]) -> Image.Image:
    """The pixels of a mask file as grey, 8 bits: read as `open_upright` does, and like it in its errors.

    Args:
        size: width and height of the upright image that it is the mask of.

    Raises:
        InvalidArgumentError: also when the mask has another size.
    """
    mask = open_upright(source, field, name)
    if mask.size != size:
        description = (
            f"{shown(name)} has {mask.width} × {mask.height} pixels; a mask has as many as its image, "
            f"{size[0]} × {size[1]}"
        )
        raise InvalidArgumentError(field, description, reason="MASK_SIZE")
    return mask.convert("L")


def _check_header(image: Image.Image, field: str, name: str) -> None:
    width, height = image.size
    if not (MIN_SIDE <= width <= MAX_SIDE and MIN_SIDE <= height <= MAX_SIDE):
        description = f"{shown(name)} has {width} × {height} pixels; {MIN_SIDE} to {MAX_SIDE} a side are allowed"
        raise InvalidArgumentError(field, description, reason="IMAGE_SIZE")
    frames = getattr(image, "n_frames", 1)
    if frames != 1 and image.format != "MPO":
        description = f"{shown(name)} has {frames} frames; one is allowed"
        raise InvalidArgumentError(field, description, reason="IMAGE_ANIMATED")


def _turned(image: Image.Image) -> Image.Image:
    """Like `ImageOps.exif_transpose`, which gives up on a readable orientation when other EXIF is broken."""
    try:
        turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except _DAMAGE:
        return image
    return image if turn is None else image.transpose(turn)


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # grey of 16 bits, which `convert` would cut off at 255
        return image.convert("I").point(_SIXTEEN_TO_EIGHT_BITS, "L").convert("RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    colors = image.convert("RGBA")
    flat = Image.new("RGB", colors.size, "white")
    flat.paste(colors, mask=colors.getchannel("A"))
    return flat
