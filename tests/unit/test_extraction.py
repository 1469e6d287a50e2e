"""What a full fine-tune changed, as a low-rank adapter: exact where it can be, and never worse than it must be."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from atelier.diffusion.adapter_file import read_adapter_file, write_adapter_file
from atelier.diffusion.extraction import explained, extract_low_rank
from atelier.diffusion.families.stable_diffusion import StableDiffusion
from atelier.diffusion.lowrank import Factors, LowRank, select_layers, weight_shapes
from tests.harness.adapters import largest_difference, random_updates


def tuned_by(model: nn.Module, updates: Factors) -> nn.Module:
    """A copy with the updates in its weights."""
    tuned = copy.deepcopy(model)
    for name, layer in select_layers(tuned, "all").items():
        if name in updates:
            delta = updates[name].b @ updates[name].a.flatten(1)
            layer.weight.data += delta.view_as(layer.weight)
    return tuned


@pytest.mark.parametrize("component", ["unet", "text_encoder"])
def test_low_rank_changes_are_recovered(base: StableDiffusion, component: str) -> None:
    model = base.components()[component]
    updates = random_updates(model, seed=1, rank=4)
    tuned = tuned_by(model, updates)
    extracted = extract_low_rank(model, tuned, "all", 4)
    assert extracted.keys() == updates.keys()
    # The weights hold the change to float32's precision only.
    assert max(largest_difference(extracted[name], updates[name]) for name in updates) < 1e-6
    assert explained(model, tuned, extracted) == pytest.approx(1, abs=1e-6)
    contents = write_adapter_file({component: extracted})
    assert read_adapter_file(contents, {component: weight_shapes(model)})[component].keys() == updates.keys()


def test_nothing_changed_is_an_adapter_that_does_nothing(base: StableDiffusion) -> None:
    extracted = extract_low_rank(base.unet, copy.deepcopy(base.unet), "attention", 2)
    assert all((update.b @ update.a).abs().max() == 0 for update in extracted.values())
    assert explained(base.unet, base.unet, extracted) == 1


def test_what_the_adapter_cannot_carry_counts_as_lost(base: StableDiffusion) -> None:
    updates = random_updates(base.unet, seed=1, rank=4)
    tuned = tuned_by(base.unet, updates)
    lower, attention = (
        extract_low_rank(base.unet, tuned, "all", 2),
        extract_low_rank(base.unet, tuned, "attention", 4),
    )
    assert 0.3 < explained(base.unet, tuned, lower) < 0.9
    total = {name: (update.b @ update.a.flatten(1)).square().sum().item() for name, update in updates.items()}
    share = sum(total[name] for name in attention) / sum(total.values())
    assert explained(base.unet, tuned, attention) == pytest.approx(share, abs=1e-4)
    for name, parameter in tuned.named_parameters():
        if name.endswith("norm1.bias"):
            parameter.data += 1
    assert explained(base.unet, tuned, attention) < share - 0.01


@pytest.mark.parametrize(("out", "width"), [(24, 40), (40, 24), (3, 40)])
@pytest.mark.parametrize("rank", [1, 8])
def test_one_layer_s_extraction_is_the_optimum(out: int, width: int, rank: int) -> None:
    torch.manual_seed(0)
    base_model, tuned = nn.Sequential(), nn.Sequential()
    for model in (base_model, tuned):
        model.add_module("to_q", nn.Linear(width, out, bias=False))
    change = (tuned.get_parameter("to_q.weight") - base_model.get_parameter("to_q.weight")).detach()
    values = torch.linalg.svdvals(change.double()).square()
    extracted = extract_low_rank(base_model, tuned, "attention", rank)
    assert extracted["to_q"].rank == min(rank, out)
    wanted = values[:rank].sum() / values.sum()
    assert explained(base_model, tuned, extracted) == pytest.approx(wanted.item(), abs=1e-6)
    other = {"to_q": LowRank(a=torch.randn(rank, width), b=torch.zeros(out, rank))}
    assert explained(base_model, tuned, other) == 0
