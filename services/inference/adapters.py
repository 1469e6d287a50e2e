"""From an adapter's name to its factors in memory: registry, disk, host memory, slot.

Names are resolved at every request, with a credential of the caller's tenant, since they may move and since a
tenant must never reach another's adapters; what a name means is known by its digest, and only digests are cached.
An adapter enters the caches when it has been checked to the end: a failed load leaves nothing behind.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import structlog

from atelier.client.connection import Connection
from atelier.client.registry import RegistryClient
from atelier.diffusion.adapter_file import FILE_NAME, read_adapter_file
from atelier.diffusion.base import Base
from atelier.diffusion.slots import PackedFactors
from atelier.errors import DeadlineExceededError, FailedPreconditionError, UnavailableError
from atelier.pb.common.v1.common_pb2 import File
from atelier.pb.registry.v1 import registry_pb2
from atelier.rpc.call import current_tenant
from atelier.rpc.identity import TokenAuthority
from services.inference import metrics
from services.inference.disk_cache import DiskCache
from services.inference.engine import Engine
from services.inference.lru import LruCache

TOKEN_SECONDS = 300.0
_WEIGHTS_SUFFIX = ".safetensors"
_log = structlog.get_logger("atelier.inference")


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


def open_registry(address: str, authority: TokenAuthority) -> Connection:
    """A connection on which every call carries a short-lived token of the tenant that is being served."""

    def token() -> str:
        return authority.issue(tenant=current_tenant(), subject="inference", lifetime_seconds=TOKEN_SECONDS)

    return Connection(address, token)


class AdapterCache:
    """The adapters of all tenants, for all engines of this process. Its methods belong to the event loop."""

    def __init__(self, registry: RegistryClient, config: CacheConfig) -> None:
        self._registry = registry
        self._config = config
        self._disk = DiskCache(config.folder, config.max_disk_bytes)
        self._host: LruCache[PackedFactors] = LruCache(config.max_host_bytes, lambda packed: packed.flat.nbytes)
        self._loading: dict[tuple[str, str], asyncio.Task[PackedFactors]] = {}

    async def resolve(self, reference: str, base: Base) -> registry_pb2.Version:
        """The version that a reference means now, when it can be used on this base model.

        Raises:
            NotFoundError: the caller's tenant has no such adapter, alias or version.
            FailedPreconditionError: it has no version yet, belongs to another base model, or is of another kind.
            UnavailableError: the registry is away.
        """
        with _registry_errors():
            version = await asyncio.to_thread(
                self._registry.resolve, reference, timeout_seconds=self._config.resolve_seconds
            )
        _check_base(reference, version, base)
        _weights(version)
        return version

    async def load(self, version: registry_pb2.Version, engine: Engine) -> PackedFactors:
        """The version's factors, out of the nearest place; several callers at once cause one load.

        Raises:
            InvalidArgumentError: the file does not fit the base model, or is malformed.
            DataLossError: its bytes do not have their SHA-256.
            UnavailableError: the registry is away.
        """
        if packed := engine.slots.resident(version.digest):
            return _found("slot", packed)
        if packed := self._host.get(version.digest):
            return _found("host", packed)
        # One load a tenant, so that no tenant ever sees an error that names another's adapter.
        key = (current_tenant(), version.digest)
        task = self._loading.get(key)
        if task is None:
            task = asyncio.create_task(asyncio.to_thread(self._load, version, engine))
            self._loading[key] = task
            task.add_done_callback(lambda done: self._forget_load(key, done))
        with _registry_errors():
            async with asyncio.timeout(self._config.download_seconds):
                return await asyncio.shield(task)  # a caller who goes away does not stop the others' load

    def _forget_load(self, key: tuple[str, str], task: asyncio.Task[PackedFactors]) -> None:
        del self._loading[key]
        if not task.cancelled() and task.exception() is not None:
            _log.info("an adapter could not be loaded", cause=repr(task.exception()))

    def _load(self, version: registry_pb2.Version, engine: Engine) -> PackedFactors:
        file = _weights(version)
        cached = self._disk.read(version.digest, file.sha256)
        contents = self._registry.download(version, file.path) if cached is None else cached
        factors = read_adapter_file(
            contents, engine.bank.shapes, max_rank=engine.config.max_rank, field=f"adapters[{version.name}]"
        )
        packed = engine.bank.pack(factors)
        if cached is None:
            self._disk.write(version.digest, contents)
        self._host.put(version.digest, packed)
        return _found("registry" if cached is None else "disk", packed)


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
