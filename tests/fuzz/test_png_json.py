"""Pictures, JSON and text of ill will and of chance: what is accepted, other readers read as well."""

from __future__ import annotations

import io
import json
import pickle
import struct
import warnings
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from atelier.diffusion.images import encode_png
from services.registry.content import MAX_TEXT_BYTES
from tests.fuzz.checking import verdict
from tests.fuzz.profiles import QUICK, THOROUGH
from tests.harness.files import png, zipped

SIGNATURE = b"\x89PNG\r\n\x1a\n"
Chunk = tuple[bytes, bytes]


def of_chunks(*chunks: Chunk) -> bytes:
    """A PNG file of these chunks, whose checksums are right."""
    return SIGNATURE + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


def header(width: int = 2, height: int = 2, kind: Sequence[int] = (8, 0, 0, 0, 0)) -> Chunk:
    return b"IHDR", struct.pack(">IIBBBBB", width, height, *kind)


PIXELS = (b"IDAT", zlib.compress(b"\0\x80\x80" * 2))
END = (b"IEND", b"")


def saved(mode: str = "RGB", **options: Any) -> bytes:
    """What Pillow writes."""
    buffer = io.BytesIO()
    Image.new(mode, (16, 16)).save(buffer, "PNG", **options)
    return buffer.getvalue()


def noted() -> PngInfo:
    info = PngInfo()
    info.add_text("parameters", "a photo of alice, Steps: 20")
    return info


def international() -> PngInfo:
    info = PngInfo()
    info.add_itxt("XML:com.adobe.xmp", "<x:xmpmeta/>", zip=True)
    return info


def noise() -> bytes:
    """A picture that does not fit one chunk of Pillow's."""
    buffer = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (512, 512, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


HARMLESS_PNGS: Mapping[str, bytes] = {
    **{f"mode {mode}": saved(mode) for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")},
    "with a resolution": saved(dpi=(72, 72)),
    "with transparency": saved("P", transparency=0),
    "with a colour profile": saved(icc_profile=b"\0" * 128),
    "what the trainer writes": encode_png(torch.zeros(64, 64, 3, dtype=torch.uint8)),
    "noise of many chunks": noise(),
    "of our own making": png(),
    "pixels in two chunks": of_chunks(header(), (b"IDAT", PIXELS[1][:5]), (b"IDAT", PIXELS[1][5:]), END),
}

ATTACK_PNGS: Mapping[str, bytes] = {
    "nothing": b"",
    "signature alone": SIGNATURE,
    "text": b"only text",
    "JPEG": b"\xff\xd8\xff\xe0" + b"\0" * 64,
    "SVG": b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>",
    "cut off": png()[:-1],
    "cut off behind IDAT": png()[:-12],
    "a byte more": png() + b"\0",
    "zip behind": png() + zipped(),
    "script behind": png() + b"<?php system($_GET['x']); ?>",
    "wrong checksum": png()[:-1] + b"\0",
    "changed pixel": png().replace(b"IDAT\x78", b"IDAT\x79"),
    "length beyond the end": SIGNATURE + struct.pack(">I4s", 2**31 - 1, b"IHDR") + b"\0" * 100,
    "highest length": SIGNATURE + struct.pack(">I4s", 2**32 - 1, b"IHDR") + b"\0" * 100,
    "no header": of_chunks(PIXELS, END),
    "header in second place": of_chunks((b"gAMA", b"\0\0\0\1"), header(), PIXELS, END),
    "two headers": of_chunks(header(), header(), PIXELS, END),
    "short header": of_chunks((b"IHDR", b"\0" * 12), PIXELS, END),
    "no pixels": of_chunks(header(), END),
    "pixels in two places": of_chunks(header(), PIXELS, (b"gAMA", b"\0\0\0\1"), PIXELS, END),
    "two palettes": of_chunks(header(), (b"PLTE", b"\0" * 3), (b"PLTE", b"\0" * 3), PIXELS, END),
    "an end with contents": of_chunks(header(), PIXELS, (b"IEND", b"x")),
    "no width": of_chunks(header(0, 2), PIXELS, END),
    "far too large": of_chunks(header(2**31 - 1, 2**31 - 1), PIXELS, END),
    "too large for memory": of_chunks(header(2**14, 2**14), PIXELS, END),
    "no bit depth": of_chunks(header(kind=(3, 0, 0, 0, 0)), PIXELS, END),
    "no colour type": of_chunks(header(kind=(8, 1, 0, 0, 0)), PIXELS, END),
    "another compression": of_chunks(header(kind=(8, 0, 1, 0, 0)), PIXELS, END),
    "text within": saved(pnginfo=noted()),
    "compressed text within": of_chunks(header(), (b"zTXt", b"a\0\0" + zlib.compress(b"x" * 10**6)), PIXELS, END),
    "XMP within": saved(pnginfo=international()),
    "EXIF within": saved(exif=b"Exif\0\0MM\0*\0\0\0\x08\0\0\0\0\0\0"),
    "a time within": of_chunks(header(), (b"tIME", b"\x07\xea\1\1\0\0\0"), PIXELS, END),
    "a film": of_chunks(header(), (b"acTL", b"\0" * 8), PIXELS, END),
    "an unknown chunk": of_chunks(header(), (b"viSt", b"C:\\Users\\alice"), PIXELS, END),
    "no name": of_chunks(header(), (b"\0\0\0\0", b""), PIXELS, END),
    "a zip archive in the pixels": of_chunks(header(), (b"IDAT", zipped(b"x" * 0)[:-2] + struct.pack("<H", 16)), END),
}


@pytest.mark.parametrize("name", HARMLESS_PNGS)
def test_pictures_are_accepted(name: str) -> None:
    assert verdict("x.png", HARMLESS_PNGS[name]) is None


@pytest.mark.parametrize("name", ATTACK_PNGS)
def test_pictures_of_ill_will_are_refused(name: str) -> None:
    assert verdict("x.png", ATTACK_PNGS[name]) is not None


@pytest.mark.parametrize(
    "name", ["text within", "compressed text within", "XMP within", "EXIF within", "a time within"]
)
def test_what_tells_of_people_is_told_as_such_and_not_repeated(name: str) -> None:
    refused = verdict("x.png", ATTACK_PNGS[name]) or ""
    assert refused.startswith("METADATA_REFUSED: ")
    assert "alice" not in refused


_KINDS = st.sampled_from([b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS", b"gAMA", b"pHYs", b"tEXt", b"iCCP", b"\0abc"])
_CHUNKS = st.tuples(_KINDS, st.binary(max_size=20))


@st.composite
def pictures(draw: st.DrawFn) -> bytes:
    """Files of chunks, some right and some not, with a few bytes exchanged perhaps."""
    kind = draw(st.sampled_from([(8, 0, 0, 0, 0), (8, 2, 0, 0, 0), (1, 3, 0, 0, 1)]))
    first = header(draw(st.integers(1, 4)) % 4, draw(st.integers(1, 3)), kind)
    chunks = draw(st.lists(st.one_of(_CHUNKS, st.just(PIXELS), st.just(PIXELS)), max_size=4))
    content = bytearray(of_chunks(*([first] if draw(st.integers(0, 9)) else []), *chunks, END))
    if draw(st.booleans()):
        place = draw(st.integers(0, len(content)))
        content[place : place + draw(st.integers(0, 2))] = draw(st.binary(max_size=2))
    return bytes(content)


CUTS = st.lists(st.integers(0, 200), max_size=6)


def check_picture(content: bytes, cuts: list[int]) -> None:
    """Cuts change nothing, and what is accepted has the structure that Pillow sees; its pixels may be none."""
    judged = verdict("x.png", content)
    assert verdict("x.png", content, cuts) == judged
    assert verdict("x.png", content, range(len(content))) == judged
    if judged is None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of palettes that are too short
            try:
                size = Image.open(io.BytesIO(content)).size
            except (OSError, ValueError, SyntaxError, struct.error, IndexError):
                return  # Pillow reads what is in ancillary chunks too
        assert size == struct.unpack(">II", content[16:24])


@given(pictures(), CUTS)
@example(png(), [1, 9, 30])
@QUICK
def test_pictures_of_chance_are_judged_alike(content: bytes, cuts: list[int]) -> None:
    check_picture(content, cuts)


@pytest.mark.slow
@given(pictures(), CUTS)
@THOROUGH
def test_many_pictures_of_chance(content: bytes, cuts: list[int]) -> None:
    check_picture(content, cuts)


ATTACK_JSONS: Mapping[str, bytes] = {
    "nothing": b"",
    "NaN": b'{"x": NaN}',
    "infinity": b"[-Infinity]",
    "a key twice": b'{"a": 1, "a": 2}',
    "a key twice within": b'[{"a": {"b": 1, "\\u0062": 2}}]',
    "two documents": b"{} {}",
    "a comment": b"{} // x",
    "a comma too many": b"[1,]",
    "single quotes": b"{'a': 1}",
    "byte order mark": b"\xef\xbb\xbf{}",
    "UTF-16": "{}".encode("utf-16"),
    "bad UTF-8": b'{"a": "\xff"}',
    "NUL": b'{"a": "\0"}',
    "control characters": b'{"a": "\x01"}',
    "depth": b"[" * 500_000 + b"]" * 500_000,
    "depth of objects": b'{"a":' * 500_000 + b"1" + b"}" * 500_000,
    "a number of many digits": b"[" + b"9" * 10_000 + b"]",
    "pickle": pickle.dumps({"a": 1}),
    "pickle of protocol 0": pickle.dumps({"a": 1}, protocol=0),
    "zip": zipped(),
    "too long": b'"' + b"x" * MAX_TEXT_BYTES + b'"',
}


@pytest.mark.parametrize("name", ATTACK_JSONS)
def test_json_of_ill_will_is_refused(name: str) -> None:
    assert verdict("x.json", ATTACK_JSONS[name], range(0, len(ATTACK_JSONS[name]), 2**16)) is not None


@pytest.mark.parametrize(
    "path",
    [
        *("/home/alice/sd", "/mnt/models/sd/unet", " /home/alice", "//srv/models", "/root/.cache", "/.cache/models"),
        *("C:\\Users\\alice", "d:/models", "\\\\server\\share\\sd", "file:///home/alice", "~/sd", "~alice/sd", "~\\sd"),
    ],
)
def test_absolute_paths_in_json_are_refused_where_they_are(path: str) -> None:
    for document, place in (
        ({"_name_or_path": path}, "_name_or_path"),
        ({"parts": [{}, {"from": path}]}, "parts.1.from"),
        ({"images": {path: 1}}, "images.(key)"),
        (path, "as its only value"),
    ):
        refused = verdict("x.json", json.dumps(document).encode()) or ""
        assert refused.startswith("PERSONAL_DATA_REFUSED: ")
        assert place in refused
        assert "alice" not in refused


@pytest.mark.parametrize(
    "text",
    [
        *(
            "openai/clip-vit-large-patch14",
            "./unet",
            "../vae",
            "hf-models/vae",
            "https://example.org/a/b",
            "",
            "/",
            "//",
        ),
        *("/x", "/x</w>", "/</w>", "~/</w>", "/ /", "/ x", "://", "c:", "\\", "a photo of a fox / a dog / a cat"),
    ],
)
def test_names_and_tokens_are_no_paths(text: str) -> None:
    assert verdict("x.json", json.dumps({"a": [text], text: 1}).encode()) is None


@pytest.mark.parametrize(
    "content", [b"{}", b"[]", b"1", b'"x"', b" null\n", b'{"a": {"b": 1}, "c": {"b": 1}}', b"[-1.5e9]"]
)
def test_json_is_accepted(content: bytes) -> None:
    assert verdict("x.json", content) is None


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda values: st.lists(values) | st.dictionaries(st.text(), values),
    max_leaves=10,
)
_JSON_TEXTS = st.one_of(
    _JSON.map(json.dumps).map(str.encode),
    st.lists(st.sampled_from(["{", "}", "[", "]", '"a"', ":", ",", "1", "NaN", "\\", " "]), max_size=9).map(
        lambda parts: "".join(parts).encode()
    ),
    st.binary(max_size=30),
)


@given(_JSON_TEXTS, CUTS)
@QUICK
def test_json_of_chance_is_judged_as_the_standard_says(content: bytes, cuts: list[int]) -> None:
    judged = verdict("x.json", content)
    assert verdict("x.json", content, cuts) == judged
    if judged is None:
        json.loads(content.decode())


@given(st.text())
@QUICK
def test_all_text_is_accepted_but_for_nul_and_what_is_none(text: str) -> None:
    content = text.encode("utf-8", "surrogatepass")
    try:
        is_text = "\0" not in content.decode("utf-8")
    except UnicodeDecodeError:
        is_text = False
    assert (verdict("x.md", content) is None) == (verdict("x.txt", content) is None) == is_text


@given(st.binary(min_size=1, max_size=40))
@example(b"PK\x05\x06")
@QUICK
def test_bytes_of_chance_are_text_where_they_are_utf_8(content: bytes) -> None:
    if verdict("x.txt", content) is None:
        assert "\0" not in content.decode("utf-8")
