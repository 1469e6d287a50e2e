"""Warm base models: each with its engine and its text encoder, tried out once before it serves."""

from __future__ import annotations

import queue
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import structlog
import torch

from atelier.diffusion.base import default_dtype, load_base, refuse
from atelier.diffusion.families.stable_diffusion import StableDiffusion
from atelier.errors import InvalidArgumentError
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
        InvalidArgumentError: none of them is served, or one cannot be loaded.
    """
    models: dict[str, Model] = {}
    for name, path in folders.items():
        try:
            models[name] = load_model(name, path, config)
        except InvalidArgumentError as error:
            is_last_chance = not models and name == list(folders)[-1]
            if error.reason != "BASE_MODEL_NOT_SUPPORTED" or is_last_chance:
                raise
            _log.warning("not served", base_model=name, why=str(error))
    return models


def load_model(name: str, path: Path, config: EngineConfig) -> Model:
    """Loads a base model under a name, starts its engine, and draws one small image with it.

    Raises:
        InvalidArgumentError: it is not of a supported family, or comes with a scheduler that is not supported.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    base = load_base(path, device=device, dtype=default_dtype(device), name=name)
    if not isinstance(base, StableDiffusion):
        refuse(f"{name} is of the family {base.family}; served is {StableDiffusion.family}", "BASE_MODEL_NOT_SUPPORTED")
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
