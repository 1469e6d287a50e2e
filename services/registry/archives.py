"""Finds the zip archive in a file that arrives in pieces and is, or claims to be, something else.

A reader of archives looks for the end record from behind, in the last 64 KiB, and goes from there to the directory; it
does not mind what lies before or behind the archive (Python's `zipfile` does so, torch's reader minds only the former).
So every end record there is followed to its directory. Both must be there: four bytes alone occur in weights by chance.
Archives whose end record is further from the end are none for these readers, and none here.
Format: https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from atelier.errors import InvalidArgumentError

MAX_ENTRIES = 2**16
"""Of a directory. Random weights of 64 GiB have 16 that only look so."""

_ENTRY = b"PK\x01\x02"
_END = b"PK\x05\x06"
_WIDE_END = b"PK\x06\x07"
_WIDE_END_BYTES = 20
"""Of a zip64 archive: it stands right before the end record, whose numbers do not count then."""
_END_RECORD = struct.Struct("<4s8xIIH")
_KEPT_BYTES = 2**16 + _END_RECORD.size + _WIDE_END_BYTES


class ArchiveWatch:
    """Looks at a file's bytes: `update` for each piece, cut anywhere, then `finish`.

    Raises:
        InvalidArgumentError: by either method: the file would be opened as an archive.
    """

    def __init__(self, field: str) -> None:
        self._field = field
        self._received_bytes = 0
        self._tail = bytearray()
        self._entries: set[int] = set()
        """Where entries of a directory may begin."""

    def update(self, piece: bytes | memoryview) -> None:
        """Takes the file's next bytes."""
        overlap = bytes(self._tail[-(len(_ENTRY) - 1) :])
        text = overlap + bytes(piece)
        begin = self._received_bytes - len(overlap)
        self._entries.update(begin + place for place in _places(text, _ENTRY))
        if len(self._entries) > MAX_ENTRIES:
            self._refuse()
        self._received_bytes += len(piece)
        self._tail += piece[-_KEPT_BYTES:]
        if len(self._tail) > 2 * _KEPT_BYTES:  # not each time: pieces may be small
            del self._tail[:-_KEPT_BYTES]

    def finish(self) -> None:
        """Follows every end record to its directory."""
        tail = bytes(self._tail[-_KEPT_BYTES:])
        begin = self._received_bytes - len(tail)
        for place in _places(tail, _END):
            if len(tail) - place < _END_RECORD.size:
                continue
            _, size, offset, _ = _END_RECORD.unpack_from(tail, place)
            is_wide = place >= _WIDE_END_BYTES and tail.startswith(_WIDE_END, place - _WIDE_END_BYTES)
            # `offset` counts from where the archive begins, which is unknown; the directory ends at its end record.
            if is_wide or not self._entries.isdisjoint((begin + place - size, offset)):
                self._refuse()

    def _refuse(self) -> None:
        description = "holds a zip archive, and would be opened as one; archives are not accepted"
        raise InvalidArgumentError(self._field, description, reason="PICKLE_REFUSED")


def _places(text: bytes, wanted: bytes) -> Iterator[int]:
    place = text.find(wanted)
    while place >= 0:
        yield place
        place = text.find(wanted, place + 1)
