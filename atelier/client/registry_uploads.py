"""Files into the registry; see `registry`.

`publish` sends a version in one call, `upload` in several that go on where the last one broke off, `upload_signed` to
the object store itself.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO

import urllib3

from atelier.client.connection import LONG_CALL_SECONDS, RETRY_SECONDS, fresh_request_id
from atelier.client.registry_adapters import adapter_name
from atelier.client.registry_downloads import ignore_size
from atelier.errors import AbortedError, DeadlineExceededError, UnavailableError
from atelier.pb.registry.v1 import registry_pb2 as pb
from atelier.pb.registry.v1.registry_pb2_grpc import RegistryServiceStub
from atelier.rpc.status import translated_errors
from atelier.rpc.uploads import PIECE_BYTES, describe_file, pieces_of

MAX_FAILURES = 10
"""Calls of an upload, one after the other, that fail without a byte's progress in between."""
COMPLETE_ATTEMPTS = 5
"""Calls of CompleteUpload, all with one request id."""
PUT_TIMEOUT_SECONDS = 60.0
"""Without a byte's progress, of a PUT to the object store."""
FRESH_SECONDS = 120.0
"""Before the end of a signed PUT, from when on a fresh one is asked for: clocks differ a little."""
Contents = Mapping[str, bytes | Path]
"""Bytes or files, by the paths that they have in the version."""


class UploadMethods:
    """Part of RegistryClient. `on_sent(size_bytes)` hears of each piece."""

    _stub: RegistryServiceStub

    def publish(
        self, adapter: str, version: pb.Version, contents: Contents, *, request_id: str | None = None
    ) -> pb.Version:
        """Publishes a version made of `contents`; `version` brings everything else."""
        spec = pb.PublishVersionSpec(
            parent=adapter_name(adapter),
            version=_with_files(version, contents),
            request_id=request_id or fresh_request_id(),
        )

        def messages() -> Iterator[pb.PublishVersionRequest]:
            yield pb.PublishVersionRequest(spec=spec)
            for piece in pieces_of([contents[file.path] for file in spec.version.files]):
                yield pb.PublishVersionRequest(data=piece)

        with translated_errors():
            return self._stub.PublishVersion(messages())

    def import_version(
        self, adapter: str, file: Path, version: pb.Version, *, on_sent: Callable[[int], None] = ignore_size
    ) -> pb.Version:
        """Publishes a version out of a file of another program; `version` brings the base model at least."""
        spec = pb.ImportVersionSpec(
            parent=adapter_name(adapter),
            version=version,
            file=describe_file(file.name, file),
            request_id=fresh_request_id(),
        )

        def messages() -> Iterator[pb.ImportVersionRequest]:
            yield pb.ImportVersionRequest(spec=spec)
            for piece in pieces_of([file]):
                yield pb.ImportVersionRequest(data=piece)
                on_sent(len(piece))

        with translated_errors():
            return self._stub.ImportVersion(messages())

    def create_upload(
        self, adapter: str, version: pb.Version, contents: Contents, *, sign_put_requests: bool = False
    ) -> pb.Upload:
        """Begins an upload; what it is called is all that is needed to go on with it."""
        request = pb.CreateUploadRequest(
            parent=adapter_name(adapter),
            version=_with_files(version, contents),
            sign_put_requests=sign_put_requests,
            request_id=fresh_request_id(),
        )
        with translated_errors():
            return self._stub.CreateUpload(request)

    def get_upload(self, name: str) -> pb.Upload:
        """An upload as it is now."""
        with translated_errors():
            return self._stub.GetUpload(pb.GetUploadRequest(name=name))

    def complete_upload(self, name: str) -> pb.Version:
        """Publishes what was uploaded. An answer that is lost on its way is asked for again."""
        request = pb.CompleteUploadRequest(name=name, request_id=fresh_request_id())
        for attempt in range(1, COMPLETE_ATTEMPTS + 1):
            try:
                with translated_errors():
                    return self._stub.CompleteUpload(request, timeout=LONG_CALL_SECONDS)
            except (UnavailableError, DeadlineExceededError) as error:
                if attempt == COMPLETE_ATTEMPTS:
                    raise
                time.sleep(error.retry_after_seconds or RETRY_SECONDS)
        raise AssertionError("the last attempt returns or raises")

    def delete_upload(self, name: str) -> None:
        """Gives an upload up."""
        with translated_errors():
            self._stub.DeleteUpload(pb.DeleteUploadRequest(name=name, request_id=fresh_request_id()))

    def upload(
        self,
        adapter: str,
        version: pb.Version,
        contents: Contents,
        *,
        on_sent: Callable[[int], None] = ignore_size,
    ) -> pb.Version:
        """Publishes a version as `publish` does, and goes on where a connection or the registry broke off."""
        return self.resume_upload(self.create_upload(adapter, version, contents), contents, on_sent=on_sent)

    def resume_upload(
        self, upload: pb.Upload, contents: Contents, *, on_sent: Callable[[int], None] = ignore_size
    ) -> pb.Version:
        """Sends what is missing of an upload, and publishes it."""
        for file in upload.files:
            self._write_all(upload.name, file, contents[file.file.path], on_sent)
        return self.complete_upload(upload.name)

    def upload_signed(
        self,
        adapter: str,
        version: pb.Version,
        contents: Contents,
        *,
        on_sent: Callable[[int], None] = ignore_size,
    ) -> pb.Version:
        """Publishes a version whose files go straight to the object store; too large ones go as `upload` sends them.

        Raises:
            UnavailableError: the store cannot be reached, or does not take a file.
        """
        upload = self.create_upload(adapter, version, contents, sign_put_requests=True)
        with urllib3.PoolManager(retries=False, timeout=PUT_TIMEOUT_SECONDS) as pool:
            for index in range(len(upload.files)):
                if _is_ending(upload.files[index]):
                    upload = self.get_upload(upload.name)
                file = upload.files[index]
                content = contents[file.file.path]
                if file.HasField("put"):
                    _put(pool, file, content)
                    on_sent(file.file.size_bytes)
                else:
                    self._write_all(upload.name, file, content, on_sent)
        return self.complete_upload(upload.name)

    def _write_all(self, name: str, file: pb.UploadFile, content: bytes | Path, on_sent: Callable[[int], None]) -> None:
        """Writes a file from where it stands to its end, in as many calls as that takes."""
        failures, is_known = 0, True
        while file.received_bytes < file.file.size_bytes:
            try:
                upload = self._write(name, file, content, on_sent) if is_known else self.get_upload(name)
            except (UnavailableError, AbortedError) as error:  # aborted: a call that seemed lost has written it
                failures, is_known = failures + 1, False
                if failures == MAX_FAILURES:
                    raise
                time.sleep(error.retry_after_seconds or RETRY_SECONDS)
                continue
            before, is_known = file.received_bytes, True
            file = next(each for each in upload.files if each.file.path == file.file.path)
            failures = 0 if file.received_bytes > before else failures

    def _write(
        self, name: str, file: pb.UploadFile, content: bytes | Path, on_sent: Callable[[int], None]
    ) -> pb.Upload:
        spec = pb.WriteUploadSpec(upload=name, path=file.file.path, offset_bytes=file.received_bytes)

        def messages() -> Iterator[pb.WriteUploadRequest]:
            yield pb.WriteUploadRequest(spec=spec)
            with content.open("rb") if isinstance(content, Path) else io.BytesIO(content) as stream:
                stream.seek(spec.offset_bytes)
                while piece := stream.read(PIECE_BYTES):
                    yield pb.WriteUploadRequest(data=piece)
                    on_sent(len(piece))

        with translated_errors():
            return self._stub.WriteUpload(messages())


def _with_files(version: pb.Version, contents: Contents) -> pb.Version:
    described = pb.Version()
    described.CopyFrom(version)
    del described.files[:]
    described.files.extend(describe_file(path, contents[path]) for path in sorted(contents))
    return described


def _is_ending(file: pb.UploadFile) -> bool:
    """Whether a file has a signed PUT that had better not be begun any more."""
    return file.HasField("put") and file.put.expire_time.ToSeconds() - time.time() < FRESH_SECONDS


def _put(pool: urllib3.PoolManager, file: pb.UploadFile, content: bytes | Path) -> None:
    def send(body: bytes | IO[bytes]) -> urllib3.BaseHTTPResponse:
        return pool.request("PUT", file.put.url, body=body, headers=dict(file.put.headers))

    try:
        if isinstance(content, bytes):
            response = send(content)
        else:
            with content.open("rb") as stream:
                response = send(stream)
    except urllib3.exceptions.HTTPError as error:
        raise UnavailableError(f"the object store did not take {file.file.path}", reason="STORE_UNAVAILABLE") from error
    if response.status != 200:
        raise UnavailableError(
            f"the object store answered {response.status} to {file.file.path}", reason="STORE_UNAVAILABLE"
        )
