"""Optimizers by name, their learning-rate schedule, and their whole state as plain tensors and numbers.

Training that is resumed from a saved state goes on bit for bit as if it had never stopped.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from prodigyopt import Prodigy
from torch import nn
from transformers.optimization import Adafactor

from atelier.errors import FailedPreconditionError
from services.trainer.training.config import TrainingConfig

_PREFIX = "optimizer"


@dataclass(frozen=True, slots=True, kw_only=True)
class ParameterGroup:
    """Parameters by name that share a peak learning rate and a decoupled weight decay. Names are unique in a group."""

    name: str
    parameters: Mapping[str, nn.Parameter]
    learning_rate: float
    weight_decay: float


def make_optimizer(config: TrainingConfig, groups: Sequence[ParameterGroup]) -> torch.optim.Optimizer:
    """The optimizer of `config.optimizer`, with one parameter group for each of `groups`, in their order.

    Each group's `lr` is the loop's to set, step by step: its peak rate times `learning_rate_factor`; for Prodigy the
    same in every group. A group rests where its parameters have no gradient (None): a rate of 0 does not stop Prodigy.

    Raises:
        FailedPreconditionError: `adamw-8bit` without a GPU or without bitsandbytes.
    """
    options = [
        {"params": list(group.parameters.values()), "lr": group.learning_rate, "weight_decay": group.weight_decay}
        for group in groups
    ]
    return _MAKERS[config.optimizer](options, (config.adam_beta1, config.adam_beta2))


def learning_rate_factor(config: TrainingConfig, step: int) -> float:
    """The share of its peak that a learning rate has at `step`, counted from 0: 0 to 1.

    Linear warm-up, then the schedule's way to zero at the end.
    """
    if step < config.lr_warmup_steps:
        return (step + 1) / config.lr_warmup_steps
    done = (step - config.lr_warmup_steps) / max(1, config.max_train_steps - config.lr_warmup_steps)
    return {"constant": 1.0, "linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2}[config.lr_scheduler]


def begin_phase(optimizer: torch.optim.Optimizer) -> None:
    """To be called before the first step of parameters that have rested so far.

    Prodigy's estimate of the rate and its count of steps are one for all parameters: those that begin now must not
    inherit them. Other optimizers keep all of that parameter by parameter.
    """
    if isinstance(optimizer, Prodigy):
        for group in optimizer.param_groups:
            group.update(k=0, d=group["d0"], d_max=group["d0"], d_numerator=0.0)


def save_optimizer(
    optimizer: torch.optim.Optimizer, groups: Sequence[ParameterGroup]
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """All that steps change in an optimizer that `make_optimizer` made of `groups`.

    Returns:
        The tensors, by `optimizer.{group}.{parameter}.{key}`, not copied; and the numbers, which JSON keeps exactly:
        `groups` and `parameters`, each a mapping of numbers for each name.
    """
    tensors: dict[str, torch.Tensor] = {}
    scalars: dict[str, Any] = {"groups": {}, "parameters": {}}
    for group, options in zip(groups, optimizer.param_groups, strict=True):
        scalars["groups"][group.name] = {key: value for key, value in options.items() if _is_number(value)}
    for name, parameter in _named_parameters(groups):
        state = optimizer.state.get(parameter, {})
        tensors |= {f"{name}.{key}": value.detach() for key, value in state.items() if torch.is_tensor(value)}
        numbers = {key: value for key, value in state.items() if not torch.is_tensor(value)}
        if numbers:
            scalars["parameters"][name] = numbers
    return tensors, scalars


def load_optimizer(
    optimizer: torch.optim.Optimizer,
    groups: Sequence[ParameterGroup],
    tensors: Mapping[str, torch.Tensor],
    scalars: Mapping[str, Any],
) -> None:
    """Puts a new optimizer of the same configuration and groups where `save_optimizer` found the old one.

    `optimizer.param_groups` are new dictionaries afterwards. `tensors` may be on any device and may hold others, of
    other names.
    """
    names = list(_named_parameters(groups))
    states: dict[str, dict[str, Any]] = {name: dict(scalars["parameters"].get(name, {})) for name, _ in names}
    parameters = dict(names)
    for full_name, tensor in tensors.items():
        name, _, key = full_name.rpartition(".")
        if name in parameters:
            states[name][key] = _as_laid_out(tensor, parameters[name])
    content = optimizer.state_dict()
    content["state"] = {index: states[name] for index, (name, _) in enumerate(names) if states[name]}
    content["param_groups"] = [
        options | scalars["groups"][group.name] for group, options in zip(groups, content["param_groups"], strict=True)
    ]
    optimizer.load_state_dict(content)


def _named_parameters(groups: Sequence[ParameterGroup]) -> Iterator[tuple[str, nn.Parameter]]:
    """In the order in which an optimizer numbers them."""
    for group in groups:
        for name, parameter in group.parameters.items():
            yield f"{_PREFIX}.{group.name}.{name}", parameter


def _as_laid_out(tensor: torch.Tensor, parameter: nn.Parameter) -> torch.Tensor:
    """A copy that, where it has the parameter's shape, has its memory layout too: fused optimizers want them equal."""
    if tensor.shape != parameter.shape:
        return tensor.clone()
    return torch.empty_like(parameter, dtype=tensor.dtype, requires_grad=False).copy_(tensor)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _adamw(options: list[dict[str, Any]], betas: tuple[float, float]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(options, betas=betas, fused=True)


def _adamw_8bit(options: list[dict[str, Any]], betas: tuple[float, float]) -> torch.optim.Optimizer:
    """AdamW with moments of 8 bits (Dettmers et al. 2022)."""
    if any(parameter.device.type != "cuda" for group in options for parameter in group["params"]):
        raise _not_available("needs a GPU")
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise _not_available("needs the package bitsandbytes where the trainer runs") from error
    optimizer: torch.optim.Optimizer = AdamW8bit(options, betas=betas)
    return optimizer


def _not_available(why: str) -> FailedPreconditionError:
    return FailedPreconditionError(
        f"config.optimizer: adamw-8bit {why}; adamw and adafactor need neither", reason="OPTIMIZER_NOT_AVAILABLE"
    )


def _adafactor(options: list[dict[str, Any]], betas: tuple[float, float]) -> torch.optim.Optimizer:
    """Adafactor (Shazeer & Stern 2018) with the schedule's rate instead of its own, as diffusion trainers use it.

    Without scaling by the parameters' size, or a low-rank matrix that begins at zero would stay near it.
    """
    return Adafactor(options, scale_parameter=False, relative_step=False, warmup_init=False)


def _prodigy(options: list[dict[str, Any]], betas: tuple[float, float]) -> torch.optim.Optimizer:
    """Prodigy (Mishchenko & Defazio 2023), with what its authors recommend for diffusion models."""
    optimizer: torch.optim.Optimizer = Prodigy(options, betas=betas, use_bias_correction=True, safeguard_warmup=True)
    return optimizer


_MAKERS: Mapping[str, Callable[[list[dict[str, Any]], tuple[float, float]], torch.optim.Optimizer]] = {
    "adamw": _adamw,
    "adamw-8bit": _adamw_8bit,
    "adafactor": _adafactor,
    "prodigy": _prodigy,
}
