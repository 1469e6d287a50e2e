"""Importing: one file that was made elsewhere becomes a version in the form in which all versions are stored.

The file waits in the spool folder until it is there whole; then it is read (`atelier.diffusion.formats.foreign`),
compared with the base model and written anew, in float32. What is stored has none of the file's metadata, nor its name.
A file that is not understood to its last tensor is refused, and nothing is stored.

Converting holds a file's numbers in memory, as float32: one import is converted at a time, the others wait.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from atelier.diffusion.formats import diffusers_form, word_forms
from atelier.diffusion.formats.foreign import read_foreign
from atelier.diffusion.formats.tensor_file import save_tensors
from atelier.diffusion.safetensors_header import check_safetensors_header
from atelier.errors import InvalidArgumentError
from atelier.manifest import canonical_manifest, digest_of
from atelier.pb.common.v1.common_pb2 import File
from atelier.pb.registry.v1 import registry_pb2 as pb
from atelier.rpc.names import ADAPTER
from atelier.rpc.uploads import check_content, data_pieces, pieces_of, receive_file
from atelier.storage.database import Database
from atelier.storage.requests import earlier_answer
from services.registry import adapters, base_models
from services.registry.base_models import KnownBase
from services.registry.commit import Committer, VersionDraft
from services.registry.model_card import imported_card
from services.registry.quota import Quotas
from services.registry.spec import check_facts
from services.registry.storing import StoredFile, Storer
from services.registry.tables import Request
from services.registry.weights import MAX_RANK, summarize

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

    def __init__(
        self, config: ImportConfig, database: Database, storer: Storer, quotas: Quotas, committer: Committer
    ) -> None:
        self._config = config
        self._database = database
        self._storer = storer
        self._quotas = quotas
        self._committer = committer
        self._turn = asyncio.Semaphore(1)

    async def import_version(self, messages: AsyncIterator[pb.ImportVersionRequest]) -> pb.Version:
        """Serves one ImportVersion call. With `validate_only` the spec is checked, and the file when it follows."""
        spec = await _receive_spec(messages)
        version = _checked(spec, self._config.max_file_bytes)
        earlier, base = await asyncio.to_thread(self._look_up, spec, version)
        if earlier is not None:
            return earlier
        assert base is not None, "a request that is new has its base model looked up"
        pieces = data_pieces(messages)
        first = await anext(pieces, b"")
        if spec.validate_only and not first:
            version.family = base.family
            return version
        with TemporaryDirectory(prefix="import-", dir=self._config.spool_folder) as folder:
            path = Path(folder) / "file"
            await receive_file(_chain(first, pieces), spec.file, path, field=_FILE_FIELD)
            async with self._turn:
                return await asyncio.to_thread(self._import, spec, version, base, path)

    def _look_up(self, spec: pb.ImportVersionSpec, version: pb.Version) -> tuple[pb.Version | None, KnownBase | None]:
        """What this request has imported before, or else the base model. Refuses what could not be committed."""
        ids = ADAPTER.parse(spec.parent, "spec.parent")
        with self._database.transaction(read_only=True) as session:
            earlier = earlier_answer(session, Request, spec, pb.Version)
            if earlier is not None:
                return earlier, None
            adapters.find(session, ids["tenant"], ids["adapter"])
            base = base_models.find(session, version.base_model.digest, f"{_VERSION_FIELD}.base_model.digest")
            self._quotas.check(session, ids["tenant"], ())
            return None, base

    def _import(self, spec: pb.ImportVersionSpec, version: pb.Version, base: KnownBase, path: Path) -> pb.Version:
        """Converts the file and publishes what comes out of it."""
        paths = _convert(path, version, base)
        headers = {name: check_safetensors_header(path) for name, path in paths.items() if _is_weights(name)}
        weights = summarize(headers, base, _FILE_FIELD)
        version.files.extend(describe_file(name, path) for name, path in sorted(paths.items()))
        manifest = canonical_manifest(version)
        if spec.validate_only:
            version.digest, version.family = digest_of(manifest), base.family
            version.weights.extend(weights)
            return version
        draft = VersionDraft(
            version=version,
            manifest=manifest,
            stored=self._store(paths, version.files),
            family=base.family,
            weights=weights,
        )
        return self._committer.commit(spec, ADAPTER.parse(spec.parent, "spec.parent"), draft)

    def _store(self, paths: Mapping[str, Path], files: Iterable[File]) -> list[StoredFile]:
        stored: list[StoredFile] = []
        try:
            for file in files:
                stored.append(self._storer.store_content(pieces_of([paths[file.path]]), file, _FILE_FIELD))
        except BaseException:
            self._storer.discard(stored)
            raise
        return stored


def _checked(spec: pb.ImportVersionSpec, max_file_bytes: int) -> pb.Version:
    """The version that is to be published, without its files, which are not known yet."""
    wanted = pb.Version()
    wanted.CopyFrom(spec.version)
    wanted.method = wanted.method or METHOD
    check_content(spec.file, _FILE_FIELD, max_file_bytes=max_file_bytes)
    return check_facts(wanted, _VERSION_FIELD)


def _convert(path: Path, version: pb.Version, base: KnownBase) -> dict[str, Path]:
    """The version's files, beside the file that was imported, by their paths in the version."""
    keys = word_forms.table_keys(base.shapes)
    widths = {key: base.embedding_sizes[component] for component, key in keys.items()}
    foreign = read_foreign(path, base.shapes, widths, max_rank=MAX_RANK, field=_FILE_FIELD)
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


def describe_file(name: str, path: Path) -> File:
    """A file of this name with the bytes of another."""
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return File(path=name, size_bytes=path.stat().st_size, sha256=sha256)


async def _chain(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for piece in rest:
        yield piece


async def _receive_spec(messages: AsyncIterator[pb.ImportVersionRequest]) -> pb.ImportVersionSpec:
    first = await anext(messages, pb.ImportVersionRequest())
    if first.WhichOneof("content") != "spec":
        raise InvalidArgumentError("spec", "is missing; the first message of an import carries it")
    return first.spec
