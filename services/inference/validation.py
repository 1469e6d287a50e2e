"""A Generate request, checked as a whole before anything is done for it.

What comes out has every default filled in. Nothing is looked up here: whether an adapter exists, and fits the base
model, is the registry's answer.
"""

from __future__ import annotations

import math
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from atelier.diffusion.base import Base
from atelier.diffusion.schedulers import make_scheduler
from atelier.errors import InvalidArgumentError
from atelier.pb.inference.v1 import inference_pb2 as pb
from atelier.rpc.names import ID_PATTERN, check_text, shown

MAX_PROMPT_CHARACTERS = 2000
MAX_STEPS = 200
DEFAULT_STEPS = 25
MAX_GUIDANCE_SCALE = 50.0
DEFAULT_GUIDANCE_SCALE = 4.0
MAX_IMAGES = 16
MAX_ADAPTERS = 4
MAX_WEIGHT = 4.0
MAX_SEED = 2**53 - 1

_REFERENCE = re.compile(rf"{ID_PATTERN.pattern}(@({ID_PATTERN.pattern}|[1-9][0-9]{{0,8}}))?")


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterRequest:
    """An adapter as a request names it: `NAME`, `NAME@ALIAS` or `NAME@VERSION`."""

    reference: str
    weight: float


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationSpec:
    """Everything that decides what the images look like, but for what the adapters' names mean."""

    prompt: str
    negative_prompt: str
    adapters: tuple[AdapterRequest, ...]
    seed: int
    steps: int
    guidance_scale: float
    scheduler: str
    num_images: int
    width: int
    height: int

    @property
    def guided(self) -> bool:
        """Whether classifier-free guidance acts: each image is two rows then."""
        return self.guidance_scale > 1


def validate(request: pb.GenerateRequest, base: Base, *, max_size: int, max_adapters: int) -> GenerationSpec:
    """Checks a request for a base model and fills in the defaults.

    Raises:
        InvalidArgumentError: naming the first field that is wrong, and what is allowed.
    """
    make_scheduler(request.scheduler, base.scheduler_config)  # raises when it is unknown
    num_images = _integer(request, "num_images", 1, MAX_IMAGES, default=1)
    return GenerationSpec(
        prompt=check_text(request.prompt, "prompt", max_characters=MAX_PROMPT_CHARACTERS, required=True),
        negative_prompt=check_text(request.negative_prompt, "negative_prompt", max_characters=MAX_PROMPT_CHARACTERS),
        adapters=_adapters(request.adapters, max_adapters),
        seed=_seed(request, num_images),
        steps=_integer(request, "num_inference_steps", 1, MAX_STEPS, default=DEFAULT_STEPS),
        guidance_scale=_guidance_scale(request),
        scheduler=request.scheduler,
        num_images=num_images,
        width=_size(request, "width", base, max_size),
        height=_size(request, "height", base, max_size),
    )


def _integer(request: pb.GenerateRequest, field: str, low: int, high: int, *, default: int) -> int:
    value: int = getattr(request, field) if request.HasField(field) else default
    if not low <= value <= high:
        raise InvalidArgumentError(field, f"is {value}; allowed are {low} to {high}")
    return value


def _number(value: float, field: str, low: float, high: float) -> float:
    if not (math.isfinite(value) and low <= value <= high):
        raise InvalidArgumentError(field, f"is {value}; allowed are numbers from {low:g} to {high:g}")
    return value


def _seed(request: pb.GenerateRequest, num_images: int) -> int:
    highest = MAX_SEED - (num_images - 1)  # the last image's seed is a seed too
    return _integer(request, "seed", 0, highest, default=secrets.randbelow(highest + 1))


def _guidance_scale(request: pb.GenerateRequest) -> float:
    if not request.HasField("guidance_scale"):
        return DEFAULT_GUIDANCE_SCALE
    return _number(request.guidance_scale, "guidance_scale", 0, MAX_GUIDANCE_SCALE)


def _size(request: pb.GenerateRequest, field: str, base: Base, max_size: int) -> int:
    factor = base.size_factor
    value: int = getattr(request, field) if request.HasField(field) else base.default_size
    if value % factor or not factor <= value <= max_size:
        raise InvalidArgumentError(field, f"is {value}; allowed are multiples of {factor} from {factor} to {max_size}")
    return value


def _adapters(uses: Sequence[pb.AdapterUse], max_adapters: int) -> tuple[AdapterRequest, ...]:
    if len(uses) > max_adapters:
        raise InvalidArgumentError("adapters", f"holds {len(uses)} adapters; at most {max_adapters} are allowed")
    adapters = tuple(_adapter(use, f"adapters[{index}]") for index, use in enumerate(uses))
    for index, adapter in enumerate(adapters):
        if adapter.reference in (earlier.reference for earlier in adapters[:index]):
            raise InvalidArgumentError(
                f"adapters[{index}].adapter", f"{shown(adapter.reference)} is there twice; name each adapter once"
            )
    return adapters


def _adapter(use: pb.AdapterUse, field: str) -> AdapterRequest:
    if not _REFERENCE.fullmatch(use.adapter):
        raise InvalidArgumentError(
            f"{field}.adapter", f"is {shown(use.adapter)}; it must have the form NAME, NAME@ALIAS or NAME@VERSION"
        )
    weight = _number(use.weight, f"{field}.weight", -MAX_WEIGHT, MAX_WEIGHT) if use.HasField("weight") else 1.0
    return AdapterRequest(reference=use.adapter, weight=weight)
