"""The engine: one thread that denoises for everybody on one base model.

Requests join the running batch at the next step and leave it at any. They are admitted in the order of arrival,
as many as have place in one step with an image each; when all their rows do not fit into a step, they take turns.
A request whose adapters find no free slot waits, and so do later ones with adapters, while requests for the bare
base model go past. An exception in a step ends the requests of that step; the others go on.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass

import structlog
import torch

from atelier.diffusion.families.stable_diffusion import StableDiffusion
from atelier.diffusion.slots import InferenceSlots, InferenceSlotsConfig
from atelier.errors import (
    AtelierError,
    CancelledError,
    DeadlineExceededError,
    FailedPreconditionError,
    InternalError,
    UnavailableError,
)
from services.inference import metrics
from services.inference.batch import Batch
from services.inference.generation import Failed, Finished, Generation, Stepped, Track
from services.inference.slot_table import SlotTable

_log = structlog.get_logger("atelier.inference")


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """How much fits at once."""

    num_slots: int = 9
    max_rank: int = 128
    max_batch_rows: int = 16

    def __post_init__(self) -> None:
        if self.num_slots < 2:
            raise ValueError(f"num_slots: is {self.num_slots}; at least 2 are needed, since slot 0 stays empty")
        if self.max_rank < 1:
            raise ValueError(f"max_rank: is {self.max_rank}; at least 1 is needed")
        if self.max_batch_rows < 2:
            raise ValueError(f"max_batch_rows: is {self.max_batch_rows}; an image under guidance needs 2")


class Engine:
    """Generates with one base model and its slots, in a thread of its own."""

    def __init__(self, base: StableDiffusion, config: EngineConfig) -> None:
        self.base = base
        self.config = config
        self.bank = InferenceSlots(
            base.unet, InferenceSlotsConfig(num_slots=config.num_slots, max_rank=config.max_rank)
        )
        self.slots = SlotTable(self.bank)
        self._max_active = config.max_batch_rows // 2
        self._changed = threading.Condition()
        self._arrivals: deque[Generation] = deque()
        self._stopping = False
        self._pending: list[Generation] = []
        self._active: deque[Generation] = deque()  # whose turn is next comes first
        self._batch: Batch | None = None
        self._thread = threading.Thread(target=self._run, name=f"engine-{base.name}", daemon=True)

    def start(self) -> None:
        """Begins to serve."""
        self._thread.start()

    def stop(self) -> None:
        """Ends after the step that is running; requests that are left fail with UNAVAILABLE."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join()

    def submit(self, generation: Generation) -> None:
        """Takes a request; its `notify` hears of everything that follows."""
        with self._changed:
            self._arrivals.append(generation)
            self._changed.notify()

    @torch.inference_mode()
    def _run(self) -> None:
        while self._take_arrivals():
            self._drop_ended()
            self._admit()
            if self._active:
                self._step()
        for generation in (*self._pending, *self._active):
            self._end(generation, UnavailableError("the service is stopping; send the request again"))

    def _take_arrivals(self) -> bool:
        """Waits for work; False when the engine is to end."""
        with self._changed:
            while not (self._arrivals or self._pending or self._active or self._stopping):
                self._changed.wait()
            self._pending.extend(self._arrivals)
            self._arrivals.clear()
            return not self._stopping

    def _drop_ended(self) -> None:
        now = time.monotonic()
        for generation in (*self._pending, *self._active):
            if generation.cancelled:
                self._end(generation, CancelledError("the call was cancelled"))
            elif generation.deadline is not None and now > generation.deadline:
                self._end(generation, DeadlineExceededError("the call's deadline came before its images"))

    def _admit(self) -> None:
        slots_are_short = False
        for generation in tuple(self._pending):
            if len(self._active) >= self._max_active:
                return
            if generation.adapters and slots_are_short:
                continue
            try:
                admitted = self._load_slots(generation)
            except Exception as error:
                self._fail([generation], error, "loading adapters into slots failed")
                continue
            if admitted:
                self._pending.remove(generation)
                self._active.append(generation)
            else:
                slots_are_short = True

    def _load_slots(self, generation: Generation) -> bool:
        start = time.perf_counter()
        slots = self.slots.acquire(generation.adapters)
        if slots is None:
            return False
        generation.use_slots(slots)
        generation.slot_load_seconds = time.perf_counter() - start
        return True

    def _step(self) -> None:
        chosen = self._choose()
        for generation in chosen:
            if generation.denoise_started is None:
                generation.denoise_started = time.perf_counter()
                generation.notify(Stepped(step=0, total_steps=generation.next_track.total_steps))
        try:
            batch = self._batch_of(chosen)
            metrics.STEP_ROWS.observe(batch.rows)
            with metrics.STEP_SECONDS.time():
                batch.step()
        except Exception as error:
            self._fail(list(chosen), error, "a denoising step failed")
            return
        for generation in chosen:
            generation.announce_step()
            if generation.denoised:
                self._finish(generation)

    def _choose(self) -> dict[Generation, Track]:
        """A track each of as many requests as fit into a step; they then go to the end of the line."""
        chosen: dict[Generation, Track] = {}
        rows, shape = 0, self._active[0].next_track.latents.shape[1:]
        for generation in self._active:
            track = generation.next_track
            if track.latents.shape[1:] == shape and rows + track.rows <= self.config.max_batch_rows:
                chosen[generation] = track
                rows += track.rows
        if len(chosen) < len(self._active):
            waiting = [generation for generation in self._active if generation not in chosen]
            self._active = deque((*waiting, *chosen))
        return chosen

    def _batch_of(self, chosen: dict[Generation, Track]) -> Batch:
        tracks = list(chosen.values())
        if self._batch is None or self._batch.tracks != tracks:
            members = [(track, generation.group) for generation, track in chosen.items()]
            self._batch = Batch(self.base, self.bank, members)
        return self._batch

    def _finish(self, generation: Generation) -> None:
        assert generation.denoise_started is not None
        start = time.perf_counter()
        try:
            images = self._decode(generation)
        except Exception as error:
            self._fail([generation], error, "decoding an image failed")
            return
        self._remove(generation)
        metrics.IMAGES.inc(len(images))
        generation.notify(
            Finished(
                images=images,
                slot_load_seconds=generation.slot_load_seconds,
                denoise_started=generation.denoise_started,
                denoise_seconds=start - generation.denoise_started,
                decode_seconds=time.perf_counter() - start,
            )
        )

    def _decode(self, generation: Generation) -> torch.Tensor:
        """Each image alone, so that its bytes do not depend on how many were asked for."""
        latents = torch.cat([track.latents for track in generation.tracks])
        if not torch.isfinite(latents).all():
            raise FailedPreconditionError(
                "the image has values that are NaN or infinite; lower the adapters' weights or guidance_scale",
                reason="IMAGE_NOT_FINITE",
            )
        return torch.cat([self.base.decode_latents(image) for image in latents.split(1)])

    def _fail(self, generations: list[Generation], error: Exception, what: str) -> None:
        for generation in generations:
            if isinstance(error, AtelierError):
                self._end(generation, error)
                continue
            _log.error(what, correlation_id=generation.correlation_id, exc_info=error)
            message = f"{what}; correlation id {generation.correlation_id}"
            self._end(generation, InternalError(message, reason="ENGINE_FAILED"))

    def _end(self, generation: Generation, error: AtelierError) -> None:
        self._remove(generation)
        generation.notify(Failed(error=error))

    def _remove(self, generation: Generation) -> None:
        self._batch = None  # it holds factors that are not to be used again
        if generation in self._active:
            self._active.remove(generation)
            self.slots.release(generation.adapters)
        else:
            self._pending.remove(generation)
