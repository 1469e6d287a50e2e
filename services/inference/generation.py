"""One request inside an engine: its images on their way from noise to pixels, and what it tells its caller.

The engine's thread works on it; the caller's event loop reads its events and may cancel it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch

from atelier.diffusion.families.stable_diffusion import StableDiffusion
from atelier.diffusion.schedulers import make_scheduler
from atelier.diffusion.slots import Group, PackedFactors
from atelier.errors import AtelierError
from services.inference.validation import GenerationSpec

_PROGRESS_MESSAGES = 10
"""About so many are sent for a request, whatever its number of steps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stepped:
    """So many of the denoising steps are done; the first event says 0, when the first step begins."""

    step: int
    total_steps: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """The images, uint8 [N, height, width, 3], and where the engine's time went."""

    images: torch.Tensor
    slot_load_seconds: float
    denoise_started: float
    """By time.perf_counter()."""
    denoise_seconds: float
    decode_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """The request has ended without images."""

    error: AtelierError


Event = Stepped | Finished | Failed


class Track:
    """Images of one request that take every step together, with a scheduler object of their own.

    Image i starts from the noise that diffusers' StableDiffusionPipeline draws from a CPU generator with the image's
    seed, and that generator serves the steps of stochastic schedulers: nothing depends on the rest of the batch.
    """

    def __init__(self, base: StableDiffusion, spec: GenerationSpec, seeds: Sequence[int], text: torch.Tensor) -> None:
        """
        Args:
            seeds: one an image.
            text: embeddings [rows an image, tokens, width]: of the negative prompt, if there is guidance, and of
                the prompt.
        """
        self._guidance_scale = spec.guidance_scale if spec.guided else None
        self._scheduler: Any = make_scheduler(spec.scheduler, base.scheduler_config)
        self._scheduler.set_timesteps(spec.steps, device=base.device)
        generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
        accepts_generator = "generator" in inspect.signature(self._scheduler.step).parameters
        self._options = {"generator": generators} if accepts_generator else {}
        shape = (1, *base.latent_shape(spec.width, spec.height))
        noise = torch.cat([torch.randn(shape, generator=generator) for generator in generators])
        self.latents = noise.to(base.device) * self._scheduler.init_noise_sigma
        self.context = text.repeat_interleave(len(seeds), dim=0)
        self.step = 0

    @property
    def rows(self) -> int:
        """Rows of the batch: one or two an image."""
        return self.context.shape[0]

    @property
    def total_steps(self) -> int:
        """Denoising steps from noise to image; some schedulers add one to what was asked for."""
        return len(self._scheduler.timesteps)

    def inputs(self) -> tuple[torch.Tensor, torch.Tensor]:
        """What the UNet gets at this step: samples [rows, ...] and timesteps [rows]."""
        timestep = self._scheduler.timesteps[self.step]
        sample = self._scheduler.scale_model_input(self.latents, timestep)
        if self._guidance_scale is not None:
            sample = torch.cat([sample, sample])
        return sample, timestep.float().expand(self.rows)

    def advance(self, prediction: torch.Tensor) -> None:
        """Takes the step with what the UNet said [rows, ...]."""
        if self._guidance_scale is not None:
            without_text, with_text = prediction.chunk(2)
            prediction = without_text + self._guidance_scale * (with_text - without_text)
        timestep = self._scheduler.timesteps[self.step]
        self.latents = self._scheduler.step(prediction, timestep, self.latents, **self._options).prev_sample
        self.step += 1


class Generation:
    """A request's tracks, adapters and clock.

    Args:
        tracks: its images in order.
        adapters: by digest, ready to be loaded into slots.
        weights: digest and weight of each adapter that acts.
        deadline: by time.monotonic(), or None.
        notify: gets the events, in the engine's thread; it must not block.
    """

    def __init__(
        self,
        *,
        tracks: Sequence[Track],
        adapters: Mapping[str, PackedFactors],
        weights: Sequence[tuple[str, float]],
        deadline: float | None,
        correlation_id: str,
        notify: Callable[[Event], object],
    ) -> None:
        self.tracks = tracks
        self.adapters = adapters
        self.deadline = deadline
        self.correlation_id = correlation_id
        self.notify = notify
        self.cancelled = False
        self.slot_load_seconds = 0.0
        self.denoise_started: float | None = None
        self.group: Group = ()
        self._weights = weights
        self._announced = 0

    def cancel(self) -> None:
        """Makes the engine drop the request before its next step. Any thread may call it, also after the end."""
        self.cancelled = True

    def use_slots(self, slots: Mapping[str, int]) -> None:
        """Says in which slots its adapters are."""
        self.group = tuple((slots[digest], weight) for digest, weight in self._weights)

    @property
    def next_track(self) -> Track:
        """The track that is behind the others."""
        return min(self.tracks, key=lambda track: track.step)

    @property
    def denoised(self) -> bool:
        """Whether all steps are done."""
        return self.next_track.step == self.next_track.total_steps

    def announce_step(self) -> None:
        """Notifies of progress at the first and last step, and every few in between."""
        step, total = self.next_track.step, self.next_track.total_steps
        if step == self._announced:
            return
        self._announced = step
        if step == total or step == 1 or step % max(1, total // _PROGRESS_MESSAGES) == 0:
            self.notify(Stepped(step=step, total_steps=total))


def make_tracks(base: StableDiffusion, spec: GenerationSpec, text: torch.Tensor, *, max_rows: int) -> list[Track]:
    """A request's images as equal tracks of at most `max_rows` rows each; `text` as for Track."""
    images_a_track = max_rows // text.shape[0]
    num_tracks = -(-spec.num_images // images_a_track)
    seeds = [spec.seed + index for index in range(spec.num_images)]
    ends = [round(spec.num_images * part / num_tracks) for part in range(num_tracks + 1)]
    return [Track(base, spec, seeds[start:end], text) for start, end in pairwise(ends)]
