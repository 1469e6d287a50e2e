"""Files out of the registry; see `registry`."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import takewhile
from pathlib import Path

from google.protobuf.duration_pb2 import Duration

from atelier.client.connection import RETRY_SECONDS
from atelier.errors import DataLossError, FailedPreconditionError, NotFoundError, UnavailableError
from atelier.pb.common.v1.common_pb2 import File
from atelier.pb.registry.v1 import registry_pb2 as pb
from atelier.pb.registry.v1.registry_pb2_grpc import RegistryServiceStub
from atelier.rpc.names import shown
from atelier.rpc.status import translated_errors
from atelier.rpc.uploads import is_safe_path

DOWNLOAD_ATTEMPTS = 5
"""Calls for one file: one that breaks off is followed by another, from there on."""


def ignore_size(size_bytes: int) -> None:
    """Of a piece that was sent or received: nobody wants to hear of it."""


class DownloadMethods:
    """Part of RegistryClient."""

    _stub: RegistryServiceStub

    def download(self, version: pb.Version, path: str, *, timeout_seconds: float | None = None) -> bytes:
        """The bytes of one file of a version, checked against its SHA-256; all of them within `timeout_seconds`."""
        return b"".join(_checked(version.name, _find(version, path), self._pieces(version, path, timeout_seconds)))

    def download_range(self, version: pb.Version, path: str, *, offset_bytes: int, limit_bytes: int = 0) -> bytes:
        """A range of one file of a version, to which no SHA-256 belongs; without a limit, up to the file's end."""
        request = pb.DownloadFileRequest(
            version=version.name, path=path, offset_bytes=offset_bytes, limit_bytes=limit_bytes
        )
        with translated_errors():
            return b"".join(response.data for response in self._stub.DownloadFile(request))

    def sign_download(self, version: pb.Version, path: str, *, lifetime_seconds: int | None = None) -> pb.SignedRequest:
        """An HTTP GET by which the object store serves one file of a version for a while. A secret."""
        lifetime = None if lifetime_seconds is None else Duration(seconds=lifetime_seconds)
        request = pb.SignDownloadRequest(version=version.name, path=path, lifetime=lifetime)
        with translated_errors():
            return self._stub.SignDownload(request).get

    def pull(
        self, version: pb.Version, folder: Path, *, on_received: Callable[[int], None] = ignore_size
    ) -> list[Path]:
        """Writes all files of a version below `folder`, which plain diffusers then loads.

        A file has its name once it is there whole. `on_received(size_bytes)` hears of each piece.

        Raises:
            DataLossError: bytes are not what was published, or a path would lead out of the folder.
            FailedPreconditionError: a folder below `folder` is a symbolic link.
        """
        return [
            _write(version.name, file, self._pieces(version, file.path), folder, on_received) for file in version.files
        ]

    def export_version(
        self,
        version: pb.Version,
        format: pb.ExportVersionRequest.Format,
        folder: Path,
        *,
        on_received: Callable[[int], None] = ignore_size,
    ) -> list[Path]:
        """Writes a version's weights below `folder` in the form of another program. Otherwise as `pull`."""
        request = pb.ExportVersionRequest(version=version.name, format=format)
        written = []
        with translated_errors():
            responses = self._stub.ExportVersion(request)
            response = next(responses, None)
            while response is not None:
                export = _Export(responses)
                written.append(_write(version.name, response.file, export.pieces(), folder, on_received))
                response = export.next_file
        return written

    def _pieces(self, version: pb.Version, path: str, timeout_seconds: float | None = None) -> Iterator[bytes]:
        """A file's bytes. A download that has begun goes on where it was when the registry was away for a moment."""
        request = pb.DownloadFileRequest(version=version.name, path=path)
        end_time = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        for attempt in range(1, DOWNLOAD_ATTEMPTS + 1):
            try:
                with translated_errors():
                    left = None if end_time is None else max(0.0, end_time - time.monotonic())
                    for response in self._stub.DownloadFile(request, timeout=left):
                        request.offset_bytes += len(response.data)
                        yield response.data
                return
            except UnavailableError as error:
                if not request.offset_bytes or attempt == DOWNLOAD_ATTEMPTS:
                    raise
                time.sleep(error.retry_after_seconds or RETRY_SECONDS)


class _Export:
    """The bytes of one file of an export, up to the message that begins the next one."""

    def __init__(self, responses: Iterator[pb.ExportVersionResponse]) -> None:
        self._responses = responses
        self.next_file: pb.ExportVersionResponse | None = None

    def pieces(self) -> Iterator[bytes]:
        for response in self._responses:
            if response.WhichOneof("content") == "file":
                self.next_file = response
                return
            yield response.data


def _find(version: pb.Version, path: str) -> File:
    for file in version.files:
        if file.path == path:
            return file
    raise NotFoundError(f"{version.name} has no file {path}", reason="FILE_NOT_FOUND")


def _write(version: str, file: File, pieces: Iterable[bytes], folder: Path, on_received: Callable[[int], None]) -> Path:
    if not is_safe_path(file.path):  # of an honest registry, every path is
        raise DataLossError(f"{version}: the registry tells of a file {shown(file.path)}; nothing is written there")
    target = folder / file.path
    _refuse_links(folder, target)
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.part")
    part.unlink(missing_ok=True)
    with part.open("xb") as stream:  # a file that is new is no link
        for piece in _checked(version, file, pieces):
            stream.write(piece)
            on_received(len(piece))
    return part.replace(target)


def _refuse_links(folder: Path, target: Path) -> None:
    """Refuses a target that links below `folder` would lead elsewhere."""
    for parent in takewhile(lambda parent: parent != folder, target.parents):
        if parent.is_symlink():
            raise FailedPreconditionError(
                f"{parent} is a symbolic link; nothing is written through it", reason="SYMBOLIC_LINK"
            )


def _checked(version: str, file: File, pieces: Iterable[bytes]) -> Iterator[bytes]:
    """The pieces; DataLossError after the last one when they are not what the registry told of."""
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
        yield piece
    if digest.hexdigest() != file.sha256:
        raise DataLossError(f"{version}: {file.path} did not arrive with the SHA-256 {file.sha256}")
