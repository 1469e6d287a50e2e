"""From an adapter's name to its factors in memory: registry, disk, host memory, slot.

Names are resolved at every request, with a credential of the caller's tenant, since they may move and since a
tenant must never reach another's adapters; what a name means is known by its digest, and only digests are cached.
That a version is what its digest says, and whose signature it has, is checked whenever it is resolved, cached or not.
An adapter enters the caches when it has been checked to the end: a failed load leaves nothing behind.
What waits for the registry does so in threads of its own, so that a registry that hangs holds up nobody who has no
need of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import structlog

from atelier.client.connection import Connection, Endpoint
from atelier.client.registry import RegistryClient
from atelier.diffusion.adapter_file import FILE_NAME, max_file_bytes, read_adapter_file
from atelier.diffusion.base import Base
from atelier.diffusion.slots import PackedFactors
from atelier.errors import (
    AtelierError,
    DeadlineExceededError,
    FailedPreconditionError,
    InvalidArgumentError,
    UnavailableError,
)
from atelier.pb.common.v1.common_pb2 import File
from atelier.pb.registry.v1 import registry_pb2
from atelier.rpc.call import current_tenant
from atelier.rpc.identity import TokenAuthority
from atelier.rpc.scopes import READER
from atelier.signing import Check, Verifier
from services.inference import metrics
from services.inference.disk_cache import DiskCache
from services.inference.engine import Engine
from services.inference.lru import LruCache

TOKEN_SECONDS = 300.0
RESOLVE_THREADS = 8
LOAD_THREADS = 4
"""So many adapters are downloaded at once, and as many read from disk: each is in memory twice meanwhile."""
_WEIGHTS_SUFFIX = ".safetensors"
# Whole and well, but not what a slot holds: DoRA, and updates of the text encoder.
_OTHER_KINDS = ("ADAPTER_KIND_NOT_SUPPORTED", "ADAPTER_COMPONENT_UNKNOWN")
_log = structlog.get_logger("atelier.inference")
_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheConfig:
    """Where adapters are kept, how many, and how long the registry may take."""

    folder: Path
    max_disk_bytes: int = 10 * 2**30
    max_host_bytes: int = 2**30
    resolve_seconds: float = 10.0
    download_seconds: float = 300.0

    def __post_init__(self) -> None:
        for name in ("max_disk_bytes", "max_host_bytes", "resolve_seconds", "download_seconds"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: is {getattr(self, name)}; it must not be negative")


def open_registry(registry: Endpoint, authority: TokenAuthority) -> Connection:
    """A connection on which every call carries a short-lived token of the tenant that is being served, to read."""

    def token() -> str:
        return authority.issue(
            tenant=current_tenant(), subject="inference", scopes=[READER], lifetime_seconds=TOKEN_SECONDS
        )

    return registry.connect(token)


class AdapterCache:
    """The adapters of all tenants, for all engines of this process. Its methods belong to the event loop."""

    def __init__(self, registry: RegistryClient, config: CacheConfig, verifier: Verifier) -> None:
        self._registry = registry
        self._verifier = verifier
        self._config = config
        self._disk = DiskCache(config.folder, config.max_disk_bytes)
        self._host: LruCache[PackedFactors] = LruCache(config.max_host_bytes, lambda packed: packed.flat.nbytes)
        self._loading: dict[tuple[str, str], asyncio.Task[PackedFactors]] = {}
        self._resolve_threads = ThreadPoolExecutor(RESOLVE_THREADS, "resolve")
        self._download_threads = ThreadPoolExecutor(LOAD_THREADS, "download")
        self._disk_threads = ThreadPoolExecutor(LOAD_THREADS, "disk")

    async def resolve(self, reference: str, base: Base) -> registry_pb2.Version:
        """The version that a reference means now, when it can be used on this base model.

        Raises:
            NotFoundError: the caller's tenant has no such adapter, alias or version.
            FailedPreconditionError: it has no version yet, belongs to another base model, is of another kind, or has
                no signature though one is required.
            DataLossError: it is not what its digest or its signature says.
            UnavailableError: the registry is away.
        """
        seconds = self._config.resolve_seconds
        with _registry_errors():
            async with asyncio.timeout(seconds):
                version = await _in_thread(
                    self._resolve_threads, lambda: self._registry.resolve(reference, timeout_seconds=seconds)
                )
        self._verify(version)
        _check_base(reference, version, base)
        _weights(version)
        return version

    def _verify(self, version: registry_pb2.Version) -> None:
        found = self._verifier.check(version)
        metrics.SIGNATURE_CHECKS.labels(found).inc()
        self._verifier.enforce(version, found)
        if found not in (Check.OFF, Check.VALID):
            _log.warning("a version without a good signature is used", digest=version.digest, found=found)

    async def load(self, version: registry_pb2.Version, engine: Engine, *, field: str) -> PackedFactors:
        """The version's factors, out of the nearest place; several callers at once cause one load.

        Args:
            field: of the request, for errors; such as `adapters[0]`.

        Raises:
            FailedPreconditionError: the file is larger than a slot, does not fit the base model, or is malformed.
            DataLossError: its bytes do not have their SHA-256.
            UnavailableError: the registry is away.
        """
        if packed := engine.slots.resident(version.digest):
            return _found("slot", packed)
        if packed := self._host.get(version.digest):
            return _found("host", packed)
        _check_size(version, engine, field)
        # One load a tenant, so that no tenant ever sees an error that names another's adapter.
        key = (current_tenant(), version.digest)
        task = self._loading.get(key)
        if task is None:
            task = asyncio.create_task(self._load(version, engine))
            self._loading[key] = task
            task.add_done_callback(lambda done: self._forget_load(key, done))
        with _registry_errors(), _file_errors(version, field):
            async with asyncio.timeout(self._config.download_seconds):
                return await asyncio.shield(task)  # a caller who goes away does not stop the others' load

    def _forget_load(self, key: tuple[str, str], task: asyncio.Task[PackedFactors]) -> None:
        del self._loading[key]
        if not task.cancelled() and (error := task.exception()) is not None:
            # Its message may name the adapter.
            reason = error.reason if isinstance(error, AtelierError) else type(error).__name__
            _log.info("an adapter could not be loaded", reason=reason)

    async def _load(self, version: registry_pb2.Version, engine: Engine) -> PackedFactors:
        if packed := await _in_thread(self._disk_threads, lambda: self._from_disk(version, engine)):
            return _found("disk", packed)
        return _found("registry", await _in_thread(self._download_threads, lambda: self._fetch(version, engine)))

    def _from_disk(self, version: registry_pb2.Version, engine: Engine) -> PackedFactors | None:
        contents = self._disk.read(version.digest, _weights(version).sha256)
        return None if contents is None else self._pack(version.digest, contents, engine)

    def _fetch(self, version: registry_pb2.Version, engine: Engine) -> PackedFactors:
        path = _weights(version).path
        contents = self._registry.download(version, path, timeout_seconds=self._config.download_seconds)
        packed = self._pack(version.digest, contents, engine)
        self._disk.write(version.digest, contents)
        return packed

    def _pack(self, digest: str, contents: bytes, engine: Engine) -> PackedFactors:
        factors = read_adapter_file(contents, {"unet": engine.bank.shapes}, max_rank=engine.config.max_rank)
        packed = engine.bank.pack(factors["unet"])
        self._host.put(digest, packed)
        return packed


async def _in_thread(threads: Executor, work: Callable[[], _Result]) -> _Result:
    """As asyncio.to_thread, but in threads of one's choice. Work that has not begun is dropped with its caller."""
    return await asyncio.get_running_loop().run_in_executor(threads, copy_context().run, work)


def _found(source: str, packed: PackedFactors) -> PackedFactors:
    metrics.ADAPTER_LOADS.labels(source).inc()
    return packed


def _weights(version: registry_pb2.Version) -> File:
    """The one file that is loaded; refuses versions that would be used in part only."""
    weights = [file for file in version.files if file.path.endswith(_WEIGHTS_SUFFIX)]
    if [file.path for file in weights] != [FILE_NAME]:
        raise FailedPreconditionError(
            f"{version.name} has the weights {', '.join(file.path for file in weights)}; served is {FILE_NAME} alone",
            reason="ADAPTER_KIND_NOT_SUPPORTED",
            metadata={"version": version.name},
        )
    return weights[0]


def _check_base(reference: str, version: registry_pb2.Version, base: Base) -> None:
    if version.base_model.digest != base.digest:
        own = version.base_model
        raise FailedPreconditionError(
            f"adapter {reference} was made for the base model {own.model} ({own.digest}); "
            f"it cannot be used on {base.name} ({base.digest})",
            reason="BASE_MODEL_MISMATCH",
            metadata={
                "adapter": version.name,
                "adapter_base_model": own.model,
                "adapter_base_digest": own.digest,
                "base_model": base.name,
                "base_digest": base.digest,
            },
        )


def _check_size(version: registry_pb2.Version, engine: Engine, field: str) -> None:
    """Refuses what cannot fit before it is fetched."""
    size, most = _weights(version).size_bytes, max_file_bytes(engine.bank.shapes, max_rank=engine.config.max_rank)
    if size > most:
        raise FailedPreconditionError(
            f"{field}: the file of {version.name} has {size} bytes; a slot of rank {engine.config.max_rank} "
            f"holds at most {most}",
            reason="ADAPTER_TOO_LARGE",
            metadata={"field": field, "version": version.name, "max_rank": str(engine.config.max_rank)},
        )


@contextmanager
def _file_errors(version: registry_pb2.Version, field: str) -> Iterator[None]:
    """Tells that the stored file is what is wrong, not the request."""
    try:
        yield
    except InvalidArgumentError as error:
        raise FailedPreconditionError(
            f"{field}: the file of {version.name} cannot be used: {error.violations[0].description}",
            reason=error.reason if error.reason in _OTHER_KINDS else "ADAPTER_FILE_INVALID",
            metadata={"field": field, "version": version.name, "cause": error.reason},
        ) from None


@contextmanager
def _registry_errors() -> Iterator[None]:
    """Tells callers when to come again if the registry is away or does not answer in time."""
    try:
        yield
    except (UnavailableError, DeadlineExceededError, TimeoutError) as error:
        if isinstance(error, UnavailableError) and error.retry_after_seconds is not None:
            raise  # the registry's own answer, with its own advice
        raise UnavailableError(
            "the registry cannot be reached; generation without adapters works meanwhile",
            reason="REGISTRY_UNAVAILABLE",
            retry_after_seconds=5.0,
        ) from error
