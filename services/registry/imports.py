"""Importing: one file that was made elsewhere becomes a version in the form in which all versions are stored.

The file waits in the spool folder until it is there whole; then it is read (`atelier.diffusion.formats.foreign`),
compared with the base model and written anew, in float32. What is stored has none of the file's metadata, nor its name.
A file that is not understood to its last tensor is refused, and nothing is stored.

Converting holds a file's numbers in memory, as float32: one import is converted at a time, the others wait. They wait
for a turn at the spool as well (`spool`), before their file is received.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from atelier.diffusion.formats import diffusers_form, word_forms
from atelier.diffusion.formats.foreign import read_foreign
from atelier.diffusion.formats.tensor_file import save_tensors
from atelier.diffusion.safetensors_header import check_safetensors_header
from atelier.manifest import canonical_manifest, digest_of
from atelier.pb.common.v1.common_pb2 import File
from atelier.pb.registry.v1 import registry_pb2 as pb
from atelier.rpc.names import ADAPTER
from atelier.rpc.uploads import (
    check_size_and_digest,
    data_pieces,
    describe_file,
    first_spec,
    pieces_of,
    receive_file,
)
from services.registry.base_models import KnownBase
from services.registry.commit import Committer, VersionDraft
from services.registry.model_card import imported_card
from services.registry.spec import check_facts
from services.registry.spool import Spool, finished
from services.registry.storing import IDLE_SECONDS, StoredFile, Storer
from services.registry.streams import chain, received_in_time
from services.registry.weights import MAX_PUBLISHED_RANK, summarize

MAX_FILE_BYTES = 2 * 1024**3
METHOD = "imported"
_VERSION_FIELD = "spec.version"
_FILE_FIELD = "spec.file"


@dataclass(frozen=True, kw_only=True, slots=True)
class ImportConfig:
    """Where files wait, and how large they may be."""

    spool_folder: Path
    max_file_bytes: int = MAX_FILE_BYTES

    def __post_init__(self) -> None:
        if self.max_file_bytes <= 0:
            raise ValueError(f"max_file_bytes: is {self.max_file_bytes}; it must be positive")


class Importer:
    """Receives files of other programs."""

    def __init__(self, config: ImportConfig, storer: Storer, committer: Committer) -> None:
        self._config = config
        self._storer = storer
        self._committer = committer
        self._spool = Spool(config.spool_folder, "import-")
        self._converting = asyncio.Semaphore(1)

    async def import_version(self, messages: AsyncIterator[pb.ImportVersionRequest]) -> pb.Version:
        """Serves one ImportVersion call. With `validate_only` the spec is checked, and the file when it follows."""
        spec: pb.ImportVersionSpec = await first_spec(messages, "an import")
        version = _checked(spec, self._config.max_file_bytes)
        ids = ADAPTER.parse(spec.parent, "spec.parent")
        base = await asyncio.to_thread(self._committer.look_up, spec, ids, version, field=_VERSION_FIELD)
        if isinstance(base, pb.Version):
            return base
        pieces = data_pieces(messages)
        first = await anext(pieces, b"")
        if spec.validate_only and not first:
            version.family = base.family
            return version
        async with self._spool.turn() as folder:
            path = folder / "file"
            coming = received_in_time(chain(first, pieces), IDLE_SECONDS)
            await receive_file(coming, spec.file, path, field=_FILE_FIELD)
            async with self._converting:
                return await finished(lambda: self._import(spec, version, base, path))

    def _import(self, spec: pb.ImportVersionSpec, version: pb.Version, base: KnownBase, path: Path) -> pb.Version:
        """Converts the file and publishes what comes out of it."""
        paths = _convert(path, version, base)
        version.files.extend(describe_file(name, path) for name, path in sorted(paths.items()))
        if spec.validate_only:
            headers = {name: check_safetensors_header(path) for name, path in paths.items() if _is_weights(name)}
            version.digest, version.family = digest_of(canonical_manifest(version)), base.family
            version.weights.extend(summarize(headers, base, _FILE_FIELD))
            return version
        stored = self._store(paths, version.files)
        draft = VersionDraft(version=version, stored=stored, base=base, files_field=_FILE_FIELD)
        return self._committer.commit(spec, ADAPTER.parse(spec.parent, "spec.parent"), draft)

    def _store(self, paths: Mapping[str, Path], files: Iterable[File]) -> list[StoredFile]:
        with self._storer.all_or_none() as stored:
            for file in files:
                stored.append(self._storer.store_content(pieces_of([paths[file.path]]), file, _FILE_FIELD))
        return stored


def _checked(spec: pb.ImportVersionSpec, max_file_bytes: int) -> pb.Version:
    """The version that is to be published, without its files, which are not known yet."""
    wanted = pb.Version()
    wanted.CopyFrom(spec.version)
    wanted.method = wanted.method or METHOD
    check_size_and_digest(spec.file, _FILE_FIELD, max_file_bytes=max_file_bytes)
    return check_facts(wanted, _VERSION_FIELD)


def _convert(path: Path, version: pb.Version, base: KnownBase) -> dict[str, Path]:
    """The version's files, beside the file that was imported, by their paths in the version."""
    keys = word_forms.table_keys(base.shapes)
    widths = {key: base.embedding_sizes[component] for component, key in keys.items()}
    foreign = read_foreign(path, base.shapes, widths, max_rank=MAX_PUBLISHED_RANK, field=_FILE_FIELD)
    names = ["README.md"]
    (path.parent / "README.md").write_text(imported_card(version, foreign))
    if foreign.updates:
        names.append(diffusers_form.FILE_NAME)
        save_tensors(diffusers_form.diffusers_tensors(foreign.updates), path.parent / diffusers_form.FILE_NAME)
    if foreign.tables:
        names.append(word_forms.FILE_NAME)
        save_tensors(foreign.tables, path.parent / word_forms.FILE_NAME)
    return {name: path.parent / name for name in names}


def _is_weights(path: str) -> bool:
    return path.endswith(".safetensors")
