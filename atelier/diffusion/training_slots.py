"""Slots that learn: the slot bank's forward over parameters, one job a slot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, sqrt

import torch
from torch import nn

from atelier.diffusion.lowrank import LayerSelection, LowRank, updated_norms
from atelier.diffusion.slots import Binding, BoundFactors, SlotBank


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSlotsConfig:
    """What the factors of every job look like."""

    layers: LayerSelection
    rank: int
    scale: float
    """lora_alpha / rank (or / sqrt(rank)), multiplied into b on the way into the forward and into exported factors."""
    use_dora: bool = False
    dropout: float = 0.0

    def __post_init__(self) -> None:
        assert self.rank >= 1
        assert isfinite(self.scale)
        assert 0 <= self.dropout < 1


class TrainingSlots(SlotBank):
    """Slots whose factors are float32 parameters: slot j belongs to job j of the packed jobs."""

    def __init__(self, model: nn.Module, config: TrainingSlotsConfig, *, seeds: Sequence[int]) -> None:
        """
        Args:
            seeds: one per job, of its initial factors.
        """
        super().__init__(model, config.layers)
        self.config = config
        try:
            self._jobs = [_initial_parameters(self.layers, config, seed) for seed in seeds]
        except BaseException:
            self.close()  # out of memory, say: nobody gets this bank, so nobody else would take the hooks off
            raise

    def parameters(self, job: int) -> dict[str, nn.Parameter]:
        """A job's parameters: `LAYER.lora_A` [rank, in...], `LAYER.lora_B` [out, rank], `LAYER.magnitude` [out]."""
        return self._jobs[job]

    def factors(self, job: int) -> dict[str, LowRank]:
        """A job's adapter as it acts, the scale folded in; detached copies."""
        own = {name: parameter.detach().clone() for name, parameter in self._jobs[job].items()}
        return {
            name: LowRank(
                a=own[f"{name}.lora_A"],
                b=own[f"{name}.lora_B"] * self.config.scale,
                magnitude=own.get(f"{name}.magnitude"),
            )
            for name in self.shapes
        }

    def gather(self, *, training: bool = True) -> Binding:
        """A binding of one group per job, in order, through which gradients flow into the parameters.

        The factors act in the model's number type; the parameters and their gradients stay float32. Dropout acts in
        training alone.
        """
        factors = {name: self._bound_factors(name, layer) for name, layer in self.layers.items()}
        return Binding(groups=len(self._jobs), factors=factors, dropout=self.config.dropout if training else 0.0)

    def _stacked(self, parameter: str) -> torch.Tensor:
        """[jobs, ...]; a single job's without a copy."""
        tensors: list[torch.Tensor] = [job[parameter] for job in self._jobs]
        return tensors[0].unsqueeze(0) if len(tensors) == 1 else torch.stack(tensors)

    def _bound_factors(self, name: str, layer: nn.Linear | nn.Conv2d) -> BoundFactors:
        dtype = layer.weight.dtype
        a, b = self._stacked(f"{name}.lora_A"), self._stacked(f"{name}.lora_B").mT
        b = b if self.config.scale == 1 else b * self.config.scale
        scale = None
        if self.config.use_dora:
            magnitudes = self._stacked(f"{name}.magnitude")
            # The norm takes no part in the gradient: section 4.3 of the paper, and as PEFT does it.
            scale = (magnitudes / updated_norms(layer, a.detach(), b.detach())).to(dtype)
        return BoundFactors(a.to(dtype), b.to(dtype), scale)


def _initial_parameters(
    layers: Mapping[str, nn.Linear | nn.Conv2d], config: TrainingSlotsConfig, seed: int
) -> dict[str, nn.Parameter]:
    """As PEFT begins: a uniform (Kaiming with a = sqrt 5), b zero. Drawn on the CPU: the same on every device."""
    generator = torch.Generator("cpu").manual_seed(seed)
    parameters: dict[str, nn.Parameter] = {}
    for name, layer in layers.items():
        (out, *inner), device = layer.weight.shape, layer.weight.device
        a = torch.empty(config.rank, *inner)
        nn.init.kaiming_uniform_(a, a=sqrt(5), generator=generator)
        parameters[f"{name}.lora_A"] = nn.Parameter(a.to(device))
        parameters[f"{name}.lora_B"] = nn.Parameter(torch.zeros(out, config.rank, device=device))
        if config.use_dora:
            norms = torch.linalg.vector_norm(layer.weight.float().flatten(1), dim=1)
            parameters[f"{name}.magnitude"] = nn.Parameter(norms)
    return parameters
