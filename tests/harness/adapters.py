"""Adapters with random numbers, strong enough to be seen in every output."""

from __future__ import annotations

import torch
from torch import nn

from atelier.diffusion.lowrank import LayerSelection, LowRank, select_layers


def random_updates(
    model: nn.Module, *, seed: int, rank: int = 4, layers: LayerSelection = "all", dora: bool = False
) -> dict[str, LowRank]:
    """An update for each of a model's layers; `dora` gives them magnitudes within a tenth of the weights' norms."""
    generator = torch.Generator().manual_seed(seed)
    updates = {}
    for name, layer in select_layers(model, layers).items():
        out, *inner = layer.weight.shape
        a = torch.randn(rank, *inner, generator=generator) / torch.tensor(inner).prod().sqrt()
        b = torch.randn(out, rank, generator=generator) * 0.03
        norms = layer.weight.detach().flatten(1).norm(dim=1)
        magnitude = norms * (0.9 + 0.2 * torch.rand(out, generator=generator)) if dora else None
        updates[name] = LowRank(a=a, b=b, magnitude=magnitude)
    return updates


def largest_difference(one: LowRank, other: LowRank) -> float:
    """Of the changes that two updates make to a weight, and of their magnitudes."""
    difference = (one.b @ one.a.flatten(1) - other.b @ other.a.flatten(1)).abs().max()
    assert (one.magnitude is None) == (other.magnitude is None)
    if one.magnitude is not None and other.magnitude is not None:
        difference = torch.maximum(difference, (one.magnitude - other.magnitude).abs().max())
    return difference.item()
