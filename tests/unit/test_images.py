"""Images to learn from, out of all kinds of files."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import zlib
from contextlib import suppress

import numpy as np
import pytest
from PIL import ExifTags, Image

from atelier.errors import InvalidArgumentError
from services.trainer.images import open_mask, open_upright

FIELD = "spec.dataset.images[0].file"


def opened(content: bytes) -> Image.Image:
    image = open_upright(io.BytesIO(content), FIELD, "a.png")
    assert image.mode == "RGB"
    return image


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


def picture(seed: int = 0) -> Image.Image:
    """40 × 60 pixels, no two rows or columns alike."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (60, 40, 3), dtype=np.uint8))


def with_chunk(png: bytes, kind: bytes, data: bytes) -> bytes:
    """The PNG with a chunk more, right after its header."""
    chunk = struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    return png[:33] + chunk + png[33:]


def test_sixteen_bits_become_eight() -> None:
    ramp = np.linspace(0, 65535, 64 * 64).astype(np.uint16).reshape(64, 64)
    content = encoded(Image.fromarray(ramp))
    for png in (content, with_chunk(content, b"tRNS", b"\x12\x34")):
        grey = np.asarray(opened(png))
        assert (grey == np.round(ramp / 257)[..., None]).all()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_images_are_turned_as_their_exif_says(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    plain = np.asarray(opened(encoded(picture(), kind)))
    expected = {
        1: plain,
        2: plain[:, ::-1],
        3: plain[::-1, ::-1],
        4: plain[::-1],
        5: plain.swapaxes(0, 1),
        6: np.rot90(plain, -1),
        7: plain[::-1, ::-1].swapaxes(0, 1),
        8: np.rot90(plain),
    }[orientation]
    assert (np.asarray(opened(encoded(picture(), kind, exif=exif))) == expected).all()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("exif", [b"garbage that is no EXIF at all", b"II*", b"Exif\0\0II*\0\xff\xff\xff\xff"])
def test_broken_exif_counts_as_none(kind: str, exif: bytes) -> None:
    broken, plain = encoded(picture(), kind, exif=exif), encoded(picture(), kind)
    assert broken != plain
    assert (np.asarray(opened(broken)) == np.asarray(opened(plain))).all()


def test_an_orientation_counts_though_other_exif_is_broken() -> None:
    def entry(tag: int, kind: int, count: int, value: int) -> bytes:
        return struct.pack("<HHII", tag, kind, count, value)

    orientation, resolution = entry(274, 3, 1, 6), entry(282, 5, 3, 10**6)
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + orientation + resolution + bytes(4)
    assert opened(encoded(picture(), "JPEG", exif=exif)).size == (60, 40)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_is_white(mode: str) -> None:
    image = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    image.paste((0, 0, 0, 255), (0, 0, 32, 64))
    pixels = np.asarray(opened(encoded(image.quantize() if mode == "P" else image.convert(mode))))
    assert (pixels[:, :32] == 0).all()
    assert (pixels[:, 32:] == 255).all()


def test_of_a_jpeg_with_further_pictures_the_first_is_taken() -> None:
    content = encoded(picture(0), "MPO", save_all=True, append_images=[picture(1)])
    with Image.open(io.BytesIO(content)) as image:
        assert (image.format, getattr(image, "n_frames", 1)) == ("MPO", 2)
    assert (np.asarray(opened(content)) == np.asarray(opened(encoded(picture(0), "JPEG")))).all()


@pytest.mark.parametrize("mode", ["L", "1", "RGB", "P", "I;16"])
def test_masks_are_grey_whatever_their_mode(mode: str) -> None:
    grey = Image.new("L", (64, 64), 0)
    grey.paste(255, (0, 0, 32, 64))
    image = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257) if mode == "I;16" else grey.convert(mode)
    mask = open_mask(io.BytesIO(encoded(image)), FIELD, "a.png", size=(64, 64))
    assert mask.mode == "L"
    assert (np.asarray(mask) == np.asarray(grey)).all()


def test_a_mask_is_turned_and_has_its_image_s_upright_size() -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    turned = encoded(Image.new("L", (64, 32)), exif=exif)
    assert open_mask(io.BytesIO(turned), FIELD, "m.png", size=(32, 64)).size == (32, 64)
    with pytest.raises(InvalidArgumentError, match=r"'m\.png' has 32 × 64 pixels; .* as its image, 64 × 32") as bad:
        open_mask(io.BytesIO(turned), FIELD, "m.png", size=(64, 32))
    assert bad.value.reason == "MASK_SIZE"


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_animations_are_refused(kind: str) -> None:
    with pytest.raises(InvalidArgumentError, match=r"'a\.png' has 2 frames") as refused:
        opened(encoded(picture(0), kind, save_all=True, append_images=[picture(1)]))
    assert refused.value.reason == "IMAGE_ANIMATED"


def test_only_the_sides_limit_the_size() -> None:
    assert opened(encoded(Image.new("1", (8192, 5000)))).size == (8192, 5000)
    with pytest.raises(InvalidArgumentError, match="has 8193 × 64 pixels; 32 to 8192 a side"):
        opened(encoded(Image.new("1", (8193, 64))))


@pytest.mark.parametrize("mode", ["F", "I", "RGB"])
def test_other_formats_are_refused_whatever_their_pixels(mode: str) -> None:
    with pytest.raises(InvalidArgumentError, match="allowed are PNG, JPEG, WEBP"):
        opened(encoded(Image.new(mode, (64, 64)), "TIFF"))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "MPO", "WEBP"])
def test_changed_bytes_are_refused_or_read_and_nothing_else(kind: str) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation], exif[ExifTags.Base.Make] = 6, "camera"
    options = {"save_all": True, "append_images": [picture(1)]} if kind == "MPO" else {}
    content = np.frombuffer(encoded(picture(), kind, exif=exif, **options), np.uint8)
    random = np.random.default_rng(0)
    for _ in range(300):
        changed = content.copy()
        changed[random.integers(0, 300, 4)] = random.integers(0, 256, 4)
        with suppress(InvalidArgumentError):
            opened(changed.tobytes())


def test_reading_images_needs_no_torch() -> None:
    code = "import sys, services.trainer.images; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
