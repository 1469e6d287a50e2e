"""Noise schedulers by name, always built from the base model's own configuration.

Schedulers keep state between steps (counters, earlier outputs), so every request gets its own object.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
from diffusers.schedulers.scheduling_pndm import PNDMScheduler
from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler

from atelier.errors import InvalidArgumentError

SCHEDULERS: Mapping[str, type[Any]] = {
    "ddim": DDIMScheduler,
    "dpmpp-2m": DPMSolverMultistepScheduler,
    "euler": EulerDiscreteScheduler,
    "pndm": PNDMScheduler,
    "unipc": UniPCMultistepScheduler,
}


def scheduler_names(config: Mapping[str, Any]) -> list[str]:
    """Names of the schedulers that serve a base model, its own first.

    A model trained down to zero terminal SNR needs schedulers that know of it; others would draw washed-out images.

    Raises:
        InvalidArgumentError: the base model comes with a scheduler that is none of these.
    """
    own = config.get("_class_name")
    served = {name: kind.__name__ for name, kind in SCHEDULERS.items() if _serves(kind, config)}
    if own not in served.values():
        supported = ", ".join(served.values())
        raise InvalidArgumentError(
            "base_model", f"its scheduler is a {own}; supported are {supported}", reason="BASE_MODEL_NOT_SUPPORTED"
        )
    return sorted(served, key=lambda name: served[name] != own)


def make_scheduler(name: str, config: Mapping[str, Any]) -> Any:
    """A new scheduler for a base model with this scheduler configuration; the empty name means the model's own.

    Raises:
        InvalidArgumentError: no such scheduler, it does not serve this model, or this model's own is not supported.
    """
    allowed = scheduler_names(config)
    if name and name not in allowed:
        raise InvalidArgumentError(
            "scheduler", f"{name[:64]!r} is none of {', '.join(allowed)}", reason="SCHEDULER_UNKNOWN"
        )
    return SCHEDULERS[name or allowed[0]].from_config(dict(config))


def _serves(kind: type[Any], config: Mapping[str, Any]) -> bool:
    return not config.get("rescale_betas_zero_snr") or "rescale_betas_zero_snr" in inspect.signature(kind).parameters
