"""Exporting: a version's weights in the form of another program, made when they are asked for.

- diffusers: the files as they are stored, of a whole pipeline all of them.
- kohya: `pytorch_lora_weights.safetensors` with other keys; `formats.kohya_form` says who reads DoRA rightly.
- embedding: `learned_embeds.safetensors` as A1111 and ComfyUI read it, a file a word. The file's name is
  the word there.

One form never holds what is another's: of a version with both a LoRA and learned words, each is exported by itself.
A converted file waits in the spool folder while it is sent (`spool`); one is converted at a time, the others wait.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from atelier.diffusion.formats import diffusers_form, kohya_form, word_forms
from atelier.diffusion.formats.tensor_file import Array, save_tensors
from atelier.errors import DataLossError, FailedPreconditionError, InvalidArgumentError
from atelier.pb.common.v1.common_pb2 import File
from atelier.pb.registry.v1 import registry_pb2 as pb
from atelier.rpc.names import VERSION
from atelier.rpc.uploads import describe_file, pieces_of
from atelier.storage.database import Database
from services.registry import base_models, versions
from services.registry.base_models import KnownBase
from services.registry.downloads import Downloader
from services.registry.imports import MAX_FILE_BYTES
from services.registry.spool import Spool, finished, sent_in_time
from services.registry.weights import MAX_PUBLISHED_RANK

_Request = pb.ExportVersionRequest
_NEEDED = {_Request.FORMAT_KOHYA: diffusers_form.FILE_NAME, _Request.FORMAT_EMBEDDING: word_forms.FILE_NAME}
_RECIPE = "recipe.json"
# The tensors of files by the files' names.
Files = Mapping[str, Mapping[str, Array]]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Source:
    """A version, and what its weights are converted for."""

    version: pb.Version
    adapter_id: str
    base: KnownBase | None
    """None where nothing is converted."""


class Exporter:
    """Hands weights out in other forms."""

    def __init__(self, spool_folder: Path, database: Database, downloader: Downloader) -> None:
        self._spool = Spool(spool_folder, "export-")
        self._database = database
        self._downloader = downloader
        self._converting = asyncio.Semaphore(1)

    async def export(self, request: pb.ExportVersionRequest) -> AsyncIterator[pb.ExportVersionResponse]:
        """Serves one ExportVersion call."""
        source = await asyncio.to_thread(self._find, request)
        if request.format == _Request.FORMAT_DIFFUSERS:
            for file in _stored_weights(source.version):
                yield pb.ExportVersionResponse(file=file)
                async for response in self._downloader.download(_download(source.version, file.path)):
                    yield pb.ExportVersionResponse(data=response.data)
            return
        async with self._spool.turn() as folder:
            files = await self._convert(request.format, source, folder)
            async for answer in sent_in_time(_contents(files)):
                yield answer

    def _find(self, request: pb.ExportVersionRequest) -> _Source:
        """The version, when it has weights of this form."""
        ids = VERSION.parse(request.version, "version")
        if request.format not in (*_NEEDED, _Request.FORMAT_DIFFUSERS):
            allowed = ", ".join(_Request.Format.keys()[1:])
            raise InvalidArgumentError("format", f"is not given, or not known; allowed are {allowed}")
        with self._database.transaction(read_only=True) as session:
            version = versions.to_message(versions.find(session, ids["tenant"], ids["adapter"], ids["version"]))
            _require_weights(version, request.format)
            if request.format == _Request.FORMAT_DIFFUSERS:
                return _Source(version=version, adapter_id=ids["adapter"], base=None)
            base = base_models.find(session, version.base_model.digest, "version")
            return _Source(version=version, adapter_id=ids["adapter"], base=base)

    async def _convert(
        self, wanted: pb.ExportVersionRequest.Format, source: _Source, folder: Path
    ) -> list[tuple[File, Path]]:
        """Files of this form in `folder`."""
        weights = await self._fetch(source.version, _NEEDED[wanted], folder)
        recipe = None
        if any(file.path == _RECIPE for file in source.version.files):
            recipe = await self._fetch(source.version, _RECIPE, folder)

        def convert() -> list[tuple[File, Path]]:
            is_kohya = wanted == _Request.FORMAT_KOHYA
            return _write(_to_kohya(weights, source) if is_kohya else _to_embeddings(weights, recipe, source), folder)

        async with self._converting:
            return await finished(convert)

    async def _fetch(self, version: pb.Version, path: str, folder: Path) -> Path:
        """A file of the version in `folder`."""
        file = next(file for file in version.files if file.path == path)
        target, digest = folder / path, hashlib.sha256()
        with target.open("wb") as stream:
            async for response in self._downloader.download(_download(version, path)):
                stream.write(response.data)
                digest.update(response.data)
        if digest.hexdigest() != file.sha256:
            raise DataLossError(f"the stored bytes of {version.name}, {path}, do not have their SHA-256")
        return target


async def _contents(files: Sequence[tuple[File, Path]]) -> AsyncIterator[pb.ExportVersionResponse]:
    """What is answered of files that wait."""
    for file, path in files:
        yield pb.ExportVersionResponse(file=file)
        pieces = pieces_of([path])
        while piece := await asyncio.to_thread(next, pieces, b""):
            yield pb.ExportVersionResponse(data=piece)


def _require_weights(version: pb.Version, wanted: pb.ExportVersionRequest.Format) -> None:
    small = {file.path for file in version.files if file.size_bytes <= MAX_FILE_BYTES}
    possible = [_Request.FORMAT_DIFFUSERS, *(form for form, path in _NEEDED.items() if path in small)]
    if wanted not in possible:
        raise FailedPreconditionError(
            f"format: {version.name} has no {_NEEDED[wanted]} of at most {MAX_FILE_BYTES} bytes; it can be exported "
            f"as {', '.join(map(_Request.Format.Name, possible))}",
            reason="EXPORT_NOT_POSSIBLE",
            metadata={"version": version.name, "format": _Request.Format.Name(wanted)},
        )


def _stored_weights(version: pb.Version) -> list[File]:
    small = [file for file in version.files if file.path in _NEEDED.values()]
    return small or list(version.files)


def _download(version: pb.Version, path: str) -> pb.DownloadFileRequest:
    return pb.DownloadFileRequest(version=version.name, path=path)


def _to_kohya(weights: Path, source: _Source) -> Files:
    assert source.base is not None, "it was looked up for a conversion"
    updates = diffusers_form.read_diffusers(weights, source.base.shapes, max_rank=MAX_PUBLISHED_RANK, field="version")
    return {f"{source.adapter_id}.safetensors": kohya_form.kohya_tensors(updates, source.base.shapes)}


def _to_embeddings(weights: Path, recipe: Path | None, source: _Source) -> Files:
    assert source.base is not None, "it was looked up for a conversion"
    keys = word_forms.table_keys(source.base.shapes)
    widths = {key: source.base.embedding_sizes[component] for component, key in keys.items()}
    tables = word_forms.read_words(weights, widths, field="version")
    vectors = len(next(iter(tables.values())))
    words = word_count(recipe.read_bytes() if recipe else b"", vectors)
    names = [source.adapter_id] if words == 1 else [f"{source.adapter_id}-{index + 1}" for index in range(words)]
    length = vectors // words
    return {
        f"{name}.safetensors": word_forms.embedding_tensors(
            {key: table[index * length : (index + 1) * length] for key, table in tables.items()}
        )
        for index, name in enumerate(names)
    }


def word_count(recipe: bytes, vectors: int) -> int:
    """How many words so many vectors are. What a recipe of our own trainer does not say is one."""
    try:
        content = json.loads(recipe)
        words = len({concept["placeholder_token"] for concept in content["concepts"]})
        agrees = words * content["config"]["num_vectors"] == vectors
    except (ValueError, KeyError, TypeError, RecursionError):
        return 1
    return words if words and agrees else 1


def _write(files: Files, folder: Path) -> list[tuple[File, Path]]:
    written = []
    for name, tensors in files.items():
        path = folder / f"converted-{name}"
        save_tensors(tensors, path)
        written.append((describe_file(name, path), path))
    return written
