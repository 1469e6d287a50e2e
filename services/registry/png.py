"""Walks the chunks of a PNG file that arrives in pieces, and decodes none (https://www.w3.org/TR/png-3/#5).

Accepted is what it takes to show one picture right. Chunks that tell of people, places and times are refused, and so
are those that nobody has looked at: text (`tEXt`, `zTXt`, `iTXt`), camera data (`eXIf`), `tIME` and all unknown ones.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Generator
from typing import NoReturn

from atelier.errors import InvalidArgumentError

MAX_PIXELS = 2**27
"""A viewer that decodes more may run out of memory."""
CHUNKS = (b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS", b"gAMA", b"cHRM", b"sRGB", b"iCCP", b"sBIT", b"pHYs", b"bKGD")
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_HEAD = struct.Struct(">I4s")
_CHECKSUM = struct.Struct(">I")
_IHDR = struct.Struct(">IIBBBBB")
_BIT_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
"""By colour type."""
_MAX_PART_BYTES = 2**16
"""Of a chunk's contents, which are looked at in parts."""


class PngReader:
    """The reader of a PNG file. It keeps at most a part of a chunk.

    Args:
        size_bytes: of the whole file.
        field: the request's field that errors name.
    """

    def __init__(self, size_bytes: int, field: str) -> None:
        self._size_bytes = size_bytes
        self._field = field
        self._received_bytes = 0
        self._waiting = bytearray()
        self._walk = self._chunks()
        self._wanted_bytes: int | None = next(self._walk)
        """What the walk needs to go on; None when it has come to its end."""

    def feed(self, piece: bytes | memoryview) -> None:
        """Takes the file's next bytes."""
        self._received_bytes += len(piece)
        self._waiting += piece
        while self._wanted_bytes is not None and len(self._waiting) >= self._wanted_bytes:
            wanted = bytes(self._waiting[: self._wanted_bytes])
            del self._waiting[: self._wanted_bytes]
            try:
                self._wanted_bytes = self._walk.send(wanted)
            except StopIteration:
                self._wanted_bytes = None
        if self._wanted_bytes is None and self._waiting:
            self._refuse("has bytes behind its end, IEND")

    def finish(self) -> None:
        """Checks that the file is whole."""
        if self._wanted_bytes is not None:
            self._refuse("is cut off before its end, IEND")

    def _chunks(self) -> Generator[int, bytes, None]:
        """Yields how many bytes it needs next, and is sent them."""
        if (yield len(_SIGNATURE)) != _SIGNATURE:
            raise InvalidArgumentError(
                self._field,
                "is not a PNG image: it does not begin with the PNG signature",
                reason="CONTENT_MISMATCH",
            )
        kinds: list[bytes] = []
        while kinds[-1:] != [b"IEND"]:
            length, kind = _HEAD.unpack((yield _HEAD.size))
            self._check_kind(kind, length, kinds)
            checksum = zlib.crc32(kind)
            for start in range(0, length, _MAX_PART_BYTES):
                part = yield min(length - start, _MAX_PART_BYTES)
                checksum = zlib.crc32(part, checksum)
                if kind == b"IHDR":
                    self._check_header(part)
            if _CHECKSUM.unpack((yield _CHECKSUM.size))[0] != checksum:
                self._refuse("has a chunk with a wrong checksum")
            if kinds[-1:] != [kind]:
                kinds.append(kind)

    def _check_kind(self, kind: bytes, length: int, before: list[bytes]) -> None:
        """Of a chunk after others, of which those of a kind in a row count once."""
        if length > self._size_bytes - self._received_bytes + len(self._waiting):
            self._refuse("has a chunk that is longer than the file")
        if (kind == b"IHDR") != (not before) or (kind == b"IHDR" and length != _IHDR.size):
            self._refuse("must begin with its only IHDR")
        if kind not in CHUNKS:
            raise InvalidArgumentError(
                self._field,
                f"has a chunk {kind.decode('latin-1')!r}, which may tell of its author; save the image without it: "
                f"allowed are {', '.join(each.decode() for each in CHUNKS)}",
                reason="METADATA_REFUSED",
            )
        is_continued = kind == b"IDAT" == before[-1] if before else False
        if kind in before and not is_continued:
            self._refuse(f"has a chunk {kind.decode()} twice")
        if kind == b"IEND" and (length or b"IDAT" not in before):
            self._refuse("has an IEND that is not empty, or no IDAT")

    def _check_header(self, contents: bytes) -> None:
        width, height, depth, colour, compression, filtering, interlace = _IHDR.unpack(contents)
        if not width or not height or width * height > MAX_PIXELS:
            self._refuse(f"has {width}x{height} pixels; allowed are 1 to {MAX_PIXELS}")
        if depth not in _BIT_DEPTHS.get(colour, ()) or compression or filtering or interlace > 1:
            self._refuse("has an IHDR of no kind that PNG knows")

    def _refuse(self, description: str) -> NoReturn:
        raise InvalidArgumentError(self._field, f"is a damaged PNG image: it {description}", reason="CONTENT_MISMATCH")
