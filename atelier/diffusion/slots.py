"""The slot bank: many adapters on one base model, each row of a batch with its own.

The base model's layers are hooked once. A *binding* divides a batch into groups of equally many consecutive rows
and gives each group its adapters; while it is bound, every layer adds its groups' updates to the base layer's
output in one batched matrix product. Layers that no bound adapter touches do nothing at all, so a forward
without adapters is bit-equal to the bare model's. Two banks share that forward:

- `InferenceSlots`: a slot is an adapter; slots are preallocated, loading one is a copy, slot 0 stays empty.
- `training_slots.TrainingSlots`: a slot is a job; its factors are parameters.

A bank belongs to one thread. It does not know who may use which slot, nor when a slot may be reused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from math import isfinite, prod
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

from atelier.diffusion.lowrank import (
    Factors,
    LayerSelection,
    add_conv,
    add_linear,
    check_factors,
    rescale,
    select_layers,
)
from atelier.errors import InvalidArgumentError

# What one group of rows uses: slots and their weights. Empty means the bare base model.
Group = Sequence[tuple[int, float]]


class BoundFactors(NamedTuple):
    """A layer's factors for G groups: a [G, rank, in...], b [G, rank, out]; for DoRA, scales of the output [G, out]."""

    a: torch.Tensor
    b: torch.Tensor
    scale: torch.Tensor | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Binding:
    """Factors made ready for a batch of `groups` groups, by layer."""

    groups: int
    factors: Mapping[str, BoundFactors]
    dropout: float = 0.0
    """Share of the inputs that the updates do not see, drawn from the global random generators."""


class SlotBank:
    """The hooks on a model's layers, and which binding acts on them."""

    def __init__(self, model: nn.Module, layers: LayerSelection) -> None:
        self.layers = select_layers(model, layers)
        self.shapes = {name: layer.weight.shape for name, layer in self.layers.items()}
        self._bound: Binding | None = None
        self._hooks: list[RemovableHandle] = [
            layer.register_forward_hook(partial(self._add_updates, name)) for name, layer in self.layers.items()
        ]

    @contextmanager
    def bind(self, binding: Binding) -> Iterator[None]:
        """Lets `binding` act on every forward inside; afterwards nothing acts, whatever was raised."""
        assert self._bound is None, "a binding is active already"
        self._bound = binding
        try:
            yield
        finally:
            self._bound = None

    def close(self) -> None:
        """Takes the hooks off: the model is as it was before the bank."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    def _add_updates(
        self, name: str, layer: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor
    ) -> torch.Tensor | None:
        factors = self._bound.factors.get(name) if self._bound else None
        if factors is None:
            return None  # the hook's way to leave the output as it is
        assert self._bound is not None
        x = F.dropout(inputs[0], self._bound.dropout) if self._bound.dropout else inputs[0]
        if isinstance(layer, nn.Conv2d):
            output = add_conv(output, x, factors.a, factors.b, layer)
        else:
            output = add_linear(output, x, factors.a, factors.b)
        return output if factors.scale is None else rescale(output, self.layers[name], factors.scale)


@dataclass(frozen=True, slots=True, kw_only=True)
class InferenceSlotsConfig:
    """How many adapters fit at once, and how large they may be.

    Memory is num_slots * max_rank * (sum of the layers' in and out sizes) numbers.
    """

    num_slots: int = 9  # slot 0, which stays empty, and eight adapters
    max_rank: int = 64
    layers: LayerSelection = "all"

    def __post_init__(self) -> None:
        assert self.num_slots >= 2, "slot 0 stays empty"
        assert self.max_rank >= 1


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedFactors:
    """An adapter checked and laid out as its slot will hold it, so that loading is one copy."""

    flat: torch.Tensor
    layers: frozenset[str]


class InferenceSlots(SlotBank):
    """Preallocated slots in one buffer [num_slots, max_rank, width].

    Row r of a slot holds, layer after layer, row r of every `a` (flattened), then column r of every `b`. So an
    adapter of any rank is one contiguous block, and what a batch needs is gathered in one copy.
    """

    def __init__(self, unet: nn.Module, config: InferenceSlotsConfig) -> None:
        super().__init__(unet, config.layers)
        self.config = config
        weight = next(iter(self.layers.values())).weight
        self._width_a = sum(prod(shape[1:]) for shape in self.shapes.values())
        width = self._width_a + sum(shape[0] for shape in self.shapes.values())
        self._flat = torch.zeros(config.num_slots, config.max_rank, width, dtype=weight.dtype, device=weight.device)
        self._layers: list[frozenset[str]] = [frozenset()] * config.num_slots
        self._ranks = [0] * config.num_slots

    def pack(self, factors: Factors) -> PackedFactors:
        """Checks an adapter and lays it out in host memory (pinned when the model is on a GPU).

        It touches no slot, so another thread may do it while the model works.

        Raises:
            InvalidArgumentError: unknown layer, wrong shape, rank above `max_rank`, a value that is not finite,
                or DoRA.
        """
        check_factors(factors, self.shapes, max_rank=self.config.max_rank)
        if any(update.magnitude is not None for update in factors.values()):
            raise InvalidArgumentError(
                "adapter", "has magnitudes (DoRA), which do not fit a slot", reason="ADAPTER_KIND_NOT_SUPPORTED"
            )
        rank = max(update.rank for update in factors.values())
        flat = torch.zeros(rank, self._flat.shape[2], dtype=self._flat.dtype, pin_memory=self._flat.is_cuda)
        views = self._views(flat)
        for name, update in factors.items():
            a, b = views[name]
            a[: update.rank] = update.a
            b[: update.rank] = update.b.mT
        if not torch.isfinite(flat).all():
            raise InvalidArgumentError(
                "adapter", f"has values outside the range of {flat.dtype}", reason="ADAPTER_NOT_FINITE"
            )
        return PackedFactors(flat=flat, layers=frozenset(factors))

    def load(self, slot: int, adapter: Factors | PackedFactors) -> None:
        """Puts an adapter into a slot in place of what was there.

        Raises:
            InvalidArgumentError: as `pack`; the slot is empty then.
        """
        self.clear(slot)
        packed = adapter if isinstance(adapter, PackedFactors) else self.pack(adapter)
        rank = packed.flat.shape[0]
        self._flat[slot, :rank].copy_(packed.flat, non_blocking=True)
        self._layers[slot], self._ranks[slot] = packed.layers, rank

    def clear(self, slot: int) -> None:
        """Empties a slot: it acts as the bare base model."""
        assert 0 < slot < self.config.num_slots, "slot 0 is the bare base model"
        self._flat[slot, : self._ranks[slot]].zero_()
        self._layers[slot], self._ranks[slot] = frozenset(), 0

    def gather(self, groups: Sequence[Group]) -> Binding:
        """Makes a binding out of what the slots hold now; what is loaded later does not reach it.

        Args:
            groups: for each group of rows, pairs of slot and weight. Updates of one group add up. Groups that
                are all alike are treated as one.
        """
        assert groups, "a batch has at least one group"
        assert all(isfinite(weight) for group in groups for _, weight in group), "weights are finite"
        chosen = [tuple(pair for pair in group if pair[0] and pair[1]) for group in groups]
        if all(group == chosen[0] for group in chosen):
            chosen = chosen[:1]
        used = {slot for group in chosen for slot, _ in group}
        names = frozenset().union(*(self._layers[slot] for slot in used))
        views = self._views(self._gather_rows(chosen, max(self._ranks[slot] for slot in used))) if names else {}
        factors = {name: BoundFactors(*views[name]) for name in views if name in names}
        return Binding(groups=len(chosen), factors=factors)

    def _gather_rows(self, groups: list[tuple[tuple[int, float], ...]], rank: int) -> torch.Tensor:
        """[G, k * rank, width]: each group's k slots one below the other, weights multiplied into b."""
        most = max(len(group) for group in groups)
        padded = [(*group, *[(0, 0.0)] * (most - len(group))) for group in groups]
        slots = torch.tensor([[slot for slot, _ in group] for group in padded], device=self._flat.device)
        weights = torch.tensor([[weight for _, weight in group] for group in padded]).to(self._flat)
        rows = self._flat[:, :rank][slots]
        rows[..., self._width_a :] *= weights[..., None, None]
        return rows.flatten(1, 2)

    def _views(self, rows: torch.Tensor) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """Each layer's part of buffer rows [..., width]: a [..., in...] and b transposed [..., out]."""
        views, start_a, start_b = {}, 0, self._width_a
        for name, (out, *inner) in self.shapes.items():
            end_a, end_b = start_a + prod(inner), start_b + out
            views[name] = (rows[..., start_a:end_a].unflatten(-1, inner), rows[..., start_b:end_b])
            start_a, start_b = end_a, end_b
        return views
