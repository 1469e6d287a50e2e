"""Warm base models: each with its engine and its text encoder, tried out once before it serves."""

from __future__ import annotations

import queue
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import structlog
import torch

from atelier.diffusion.base import default_dtype, family_of
from atelier.diffusion.families.stable_diffusion import StableDiffusion
from services.inference.engine import Engine, EngineConfig
from services.inference.generation import Event, Failed, Finished, Generation, Track, make_tracks
from services.inference.prompts import PromptEncoder
from services.inference.validation import GenerationSpec

_log = structlog.get_logger("atelier.inference")


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A base model that serves."""

    engine: Engine
    prompts: PromptEncoder

    def prepare(self, spec: GenerationSpec) -> list[Track]:
        """A request's images, ready for their first step. Any thread may prepare while the engine works."""
        prompts = [spec.negative_prompt, spec.prompt] if spec.guided else [spec.prompt]
        text = torch.cat([self.prompts.encode(prompt) for prompt in prompts])
        return make_tracks(self.engine.base, spec, text, max_rows=self.engine.config.max_batch_rows)


def load_models(folders: Mapping[str, Path], config: EngineConfig) -> dict[str, Model]:
    """Loads base models by name; those of families that are trained but not served are passed over.

    Raises:
        InvalidArgumentError: one is of no family at all, or cannot be loaded.
    """
    served = {name: path for name, path in folders.items() if family_of(path) is StableDiffusion}
    for name in folders.keys() - served.keys():
        _log.warning("not served", base_model=name, served=StableDiffusion.family)
    return {name: load_model(name, path, config) for name, path in served.items()}


def load_model(name: str, path: Path, config: EngineConfig) -> Model:
    """Loads a base model under a name, starts its engine, and draws one small image with it.

    Raises:
        InvalidArgumentError: it is not of a supported family, or comes with a scheduler that is not supported.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    base = StableDiffusion.load(path, device=device, dtype=default_dtype(device), name=name)
    model = Model(engine=Engine(base, config), prompts=PromptEncoder(base))
    model.engine.start()
    _try_out(model)
    _log.info("warm", base_model=name, digest=base.digest, device=str(device))
    return model


def _try_out(model: Model) -> None:
    size = model.engine.base.default_size
    spec = GenerationSpec(
        prompt="warm-up",
        negative_prompt="",
        adapters=(),
        seed=0,
        steps=1,
        guidance_scale=4.0,
        scheduler="",
        num_images=1,
        width=size,
        height=size,
    )
    events: queue.Queue[Event] = queue.Queue()
    model.engine.submit(
        Generation(
            tracks=model.prepare(spec),
            adapters={},
            weights=(),
            deadline=None,
            correlation_id="warm-up",
            notify=events.put,
        )
    )
    while not isinstance(event := events.get(), Finished):
        if isinstance(event, Failed):
            raise event.error
