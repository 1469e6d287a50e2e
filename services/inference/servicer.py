"""The RPCs of the inference service: check, resolve and load, hand over to the engine, stream what comes back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass

import torch
from grpc.aio import ServicerContext

from atelier.diffusion.images import encode_png
from atelier.diffusion.schedulers import scheduler_names
from atelier.diffusion.slots import PackedFactors
from atelier.errors import InvalidArgumentError, UnavailableError
from atelier.pb.common.v1.common_pb2 import BaseModel
from atelier.pb.inference.v1 import inference_pb2 as pb
from atelier.pb.inference.v1.inference_pb2_grpc import InferenceServiceServicer
from atelier.pb.registry.v1 import registry_pb2
from atelier.rpc.call import current_call
from atelier.rpc.names import shown
from services.inference.adapters import AdapterCache
from services.inference.generation import Event, Failed, Finished, Generation, Stepped
from services.inference.models import Model
from services.inference.validation import MAX_ADAPTERS, GenerationSpec, validate
from services.inference.waiting import WaitingLine


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceConfig:
    """What the service accepts."""

    max_queued_requests: int = 64
    max_size: int = 1024
    """Largest width and height in pixels."""

    def __post_init__(self) -> None:
        for name in ("max_queued_requests", "max_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: is {getattr(self, name)}; it must be at least 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class _LoadedAdapters:
    """A request's adapters in host memory, in its order, and what that took."""

    versions: list[registry_pb2.Version]
    packed: list[PackedFactors]
    were_loaded: list[bool]
    resolve_seconds: float
    load_seconds: float


class InferenceServicer(InferenceServiceServicer):
    """InferenceService over warm models.

    Args:
        models: by name, the default first; it may still be filled while the service starts.
    """

    def __init__(self, models: Mapping[str, Model], cache: AdapterCache, config: ServiceConfig) -> None:
        self._models = models
        self._cache = cache
        self._config = config
        self._line = WaitingLine(config.max_queued_requests)

    async def ListModels(self, request: pb.ListModelsRequest, context: ServicerContext) -> pb.ListModelsResponse:
        return pb.ListModelsResponse(models=[self._describe(model) for model in self._models.values()])

    async def Generate(
        self, request: pb.GenerateRequest, context: ServicerContext
    ) -> AsyncIterator[pb.GenerateResponse]:
        arrival = time.perf_counter()
        model = self._model(request.base_model)
        spec = self._validate(request, model)
        events: asyncio.Queue[Event] = asyncio.Queue()
        with self._line.waiting():
            adapters = await self._load_adapters(spec, model)
            generation = await self._generation(spec, model, adapters, events, context)
            context.add_done_callback(lambda _: generation.cancel())
            model.engine.submit(generation)
            event = await events.get()
        while isinstance(event, Stepped):
            yield pb.GenerateResponse(progress=pb.Progress(step=event.step, total_steps=event.total_steps))
            event = await events.get()
        if isinstance(event, Failed):
            raise event.error
        start = time.perf_counter()
        images = await asyncio.to_thread(_encode, event.images, spec.seed)
        summary = _summary(model, spec, adapters, event)
        summary.wait_seconds = event.denoise_started - arrival
        summary.decode_seconds += time.perf_counter() - start
        for image in images:
            yield pb.GenerateResponse(image=image)
        yield pb.GenerateResponse(summary=summary)

    def _validate(self, request: pb.GenerateRequest, model: Model) -> GenerationSpec:
        max_adapters = min(MAX_ADAPTERS, model.engine.config.num_slots - 1)
        return validate(request, model.engine.base, max_size=self._config.max_size, max_adapters=max_adapters)

    def _model(self, name: str) -> Model:
        if not self._models:
            raise UnavailableError(
                "no base model is served: they are being loaded, or are of families that are not served",
                reason="NO_BASE_MODEL",
            )
        if name and name not in self._models:
            raise InvalidArgumentError(
                "base_model", f"{shown(name)} is none of {', '.join(self._models)}", reason="BASE_MODEL_UNKNOWN"
            )
        return self._models[name] if name else next(iter(self._models.values()))

    async def _load_adapters(self, spec: GenerationSpec, model: Model) -> _LoadedAdapters:
        start = time.perf_counter()
        base = model.engine.base
        versions = await asyncio.gather(*(self._cache.resolve(use.reference, base) for use in spec.adapters))
        _refuse_twins(spec, versions)
        resolved = time.perf_counter()
        were_loaded = [model.engine.slots.resident(version.digest) is not None for version in versions]
        packed = await asyncio.gather(
            *(self._cache.load(each, model.engine, field=f"adapters[{i}]") for i, each in enumerate(versions))
        )
        return _LoadedAdapters(
            versions=versions,
            packed=packed,
            were_loaded=were_loaded,
            resolve_seconds=resolved - start,
            load_seconds=time.perf_counter() - resolved,
        )

    async def _generation(
        self,
        spec: GenerationSpec,
        model: Model,
        adapters: _LoadedAdapters,
        events: asyncio.Queue[Event],
        context: ServicerContext,
    ) -> Generation:
        loop = asyncio.get_running_loop()

        def notify(event: Event) -> None:
            loop.call_soon_threadsafe(events.put_nowait, event)

        remaining = context.time_remaining()
        digests = [version.digest for version in adapters.versions]
        return Generation(
            tracks=await asyncio.to_thread(model.prepare, spec),
            adapters=dict(zip(digests, adapters.packed, strict=True)),
            weights=[(digest, use.weight) for digest, use in zip(digests, spec.adapters, strict=True)],
            deadline=None if remaining is None else time.monotonic() + remaining,
            correlation_id=current_call().correlation_id,
            notify=notify,
        )

    def _describe(self, model: Model) -> pb.Model:
        base = model.engine.base
        return pb.Model(
            base_model=_base_model(model),
            default_size=base.default_size,
            size_factor=base.size_factor,
            max_size=self._config.max_size,
            max_rank=model.engine.config.max_rank,
            schedulers=scheduler_names(base.scheduler_config),
        )


def _base_model(model: Model) -> BaseModel:
    return BaseModel(model=model.engine.base.name, digest=model.engine.base.digest)


def _refuse_twins(spec: GenerationSpec, versions: list[registry_pb2.Version]) -> None:
    """Two names may mean the same content; together they would act with a weight that nobody asked for."""
    first: dict[str, str] = {}
    for index, (use, version) in enumerate(zip(spec.adapters, versions, strict=True)):
        twin = first.setdefault(version.digest, use.reference)
        if twin != use.reference:
            raise InvalidArgumentError(
                f"adapters[{index}].adapter",
                f"{shown(use.reference)} is the same content as {shown(twin)}; name each adapter once",
            )


def _summary(model: Model, spec: GenerationSpec, adapters: _LoadedAdapters, finished: Finished) -> pb.Summary:
    """All but what the servicer alone knows: when the request came, and how long the encoding of files took."""
    loaded = [
        pb.LoadedAdapter(version=version.name, digest=version.digest, weight=use.weight, was_loaded=was_loaded)
        for use, version, was_loaded in zip(spec.adapters, adapters.versions, adapters.were_loaded, strict=True)
    ]
    return pb.Summary(
        base_model=_base_model(model),
        adapters=loaded,
        resolve_seconds=adapters.resolve_seconds,
        adapter_load_seconds=adapters.load_seconds + finished.slot_load_seconds,
        denoise_seconds=finished.denoise_seconds,
        decode_seconds=finished.decode_seconds,
    )


def _encode(images: torch.Tensor, seed: int) -> list[pb.Image]:
    """PNG files of uint8 images [N, height, width, 3]; `seed` is the first one's."""
    return [pb.Image(index=index, png=encode_png(image), seed=seed + index) for index, image in enumerate(images)]
