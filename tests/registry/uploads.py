"""Uploads that the SDK would never send."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping

from atelier.pb.common.v1.common_pb2 import File
from atelier.pb.registry.v1 import registry_pb2 as pb

OWN_FOX = "tenants/-/adapters/fox"


def declared(contents: Mapping[str, bytes]) -> list[File]:
    """The files with their true sizes and digests."""
    return [
        File(path=path, size_bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
        for path, content in contents.items()
    ]


def upload(
    version: pb.Version, pieces: Iterable[bytes] = (), *, request_id: str = "", validate_only: bool = False
) -> Iterator[pb.PublishVersionRequest]:
    """The messages of an upload to the adapter `fox`: spec, then pieces."""
    spec = pb.PublishVersionSpec(parent=OWN_FOX, version=version, request_id=request_id, validate_only=validate_only)
    yield pb.PublishVersionRequest(spec=spec)
    for piece in pieces:
        yield pb.PublishVersionRequest(data=piece)
