"""What a content check says of a file, however its bytes are cut."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise

from atelier.errors import InvalidArgumentError
from atelier.pb.common.v1.common_pb2 import File
from services.registry.content import open_check

FIELD = "files[0]"


def verdict(path: str, content: bytes, cuts: Sequence[int] = ()) -> str | None:
    """Reason and message with which a file is refused, None when it is accepted.

    Args:
        cuts: where the bytes are cut; whatever lies outside of the file cuts nothing.
    """
    try:
        check = open_check(File(path=path, size_bytes=len(content)), FIELD)
        for piece in pieces_of(content, cuts):
            check.update(piece)
        check.finish()
    except InvalidArgumentError as error:
        return f"{error.reason}: {error.message}"
    return None


def pieces_of(content: bytes, cuts: Iterable[int]) -> Iterator[bytes]:
    """The bytes in pieces."""
    places = [0, *sorted(cut for cut in cuts if 0 < cut < len(content)), len(content)]
    for begin, end in pairwise(places):
        yield content[begin:end]
