"""Low-rank updates of layers as numpy arrays: what `atelier.diffusion.lowrank` has as tensors.

A base model's layers are plain data here: the shapes of their weights, by component and by the layer's name in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from atelier.diffusion.formats.tensor_file import Array
from atelier.errors import InvalidArgumentError

MAX_SLOT_RANK = 128
"""Of what is loaded, unless the caller says otherwise: a slot of inference has room for it. More may be published."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """One layer's update, its scale folded in.

    `a` is [rank, in] for a linear layer and [rank, in, kernel height, kernel width] for a convolution; `b` is
    [out, rank] for both, and `magnitude`, of DoRA alone, [out].
    """

    a: Array
    b: Array
    magnitude: Array | None = None

    @property
    def rank(self) -> int:
        return self.a.shape[0]


# An adapter of one component: the update of each layer, by the layer's name in it.
Updates = Mapping[str, Update]
# A component's layers: the shape of each one's weight, [out, in] or [out, in, kernel height, kernel width].
Shapes = Mapping[str, Sequence[int]]


def make_update(name: str, a: Array, b: Array, magnitude: Array | None, field: str) -> Update:
    """An update of tensors as files have them: of a convolution, `b` is one too, of 1x1."""
    if a.ndim not in (2, 4) or a.ndim != b.ndim or b.shape[2:] not in ((), (1, 1)):
        raise InvalidArgumentError(
            field,
            f"{name} has lora_A of shape {list(a.shape)} and lora_B of {list(b.shape)}; they must be matrices, "
            "or a convolution and a 1x1 convolution",
            reason="ADAPTER_SHAPE_MISMATCH",
        )
    flat = None if magnitude is None else magnitude.reshape(-1)
    return Update(a=a, b=b.reshape(b.shape[:2]), magnitude=flat)


def check_adapter(updates: Mapping[str, Updates], shapes: Mapping[str, Shapes], *, max_rank: int, field: str) -> None:
    """Raises InvalidArgumentError unless the updates fit a base model, and each component is DoRA in whole or not."""
    for component, layers in updates.items():
        check_updates(layers, shapes[component], max_rank=max_rank, field=field)
        without = [name for name, update in layers.items() if update.magnitude is None]
        if 0 < len(without) < len(layers):
            raise InvalidArgumentError(
                field,
                f"{len(without)} of the {len(layers)} layers of its {component} lack magnitudes (DoRA): {without[0]}",
                reason="ADAPTER_KEY_MISSING",
            )


def check_updates(updates: Updates, shapes: Shapes, *, max_rank: int, field: str) -> None:
    """Raises InvalidArgumentError, with the tensor's name, unless the updates fit a model with these weights."""
    if not updates:
        raise InvalidArgumentError(field, "has no layers", reason="ADAPTER_EMPTY")
    unknown = sorted(updates.keys() - shapes.keys())
    if unknown:
        raise InvalidArgumentError(
            field,
            f"{len(unknown)} of its {len(updates)} layers are not in the base model: {', '.join(unknown[:5])}",
            reason="ADAPTER_LAYER_UNKNOWN",
        )
    for name, update in updates.items():
        _check_update(name, update, shapes[name], max_rank=max_rank, field=field)


def _check_update(name: str, update: Update, weight: Sequence[int], *, max_rank: int, field: str) -> None:
    rank = update.rank if update.a.ndim else 0
    if not 1 <= rank <= max_rank:
        raise InvalidArgumentError(
            field, f"{name}.lora_A has rank {rank}; allowed are 1 to {max_rank}", reason="ADAPTER_RANK_TOO_HIGH"
        )
    wanted = {"lora_A": (rank, *weight[1:]), "lora_B": (weight[0], rank), "lora_magnitude_vector": (weight[0],)}
    tensors = {"lora_A": update.a, "lora_B": update.b, "lora_magnitude_vector": update.magnitude}
    for factor, tensor in tensors.items():
        if tensor is None:
            continue
        if tuple(tensor.shape) != wanted[factor]:
            raise InvalidArgumentError(
                field,
                f"{name}.{factor} has shape {list(tensor.shape)}; the base model needs {list(wanted[factor])}",
                reason="ADAPTER_SHAPE_MISMATCH",
            )
        if not np.isfinite(tensor).all():
            raise InvalidArgumentError(
                field, f"{name}.{factor} has values that are NaN or infinite", reason="ADAPTER_NOT_FINITE"
            )
