"""Training slots do what PEFT does: LoRA, rsLoRA and DoRA, on UNets and text encoders."""

from __future__ import annotations

import copy
from collections.abc import Callable
from math import sqrt
from typing import Any

import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from peft import LoraConfig
from torch import nn
from transformers import CLIPTextModel

from atelier.diffusion.families.stable_diffusion import StableDiffusion
from atelier.diffusion.lowrank import LayerSelection, LowRank, select_layers
from atelier.diffusion.slots import InferenceSlots, InferenceSlotsConfig
from atelier.diffusion.training_slots import TrainingSlots, TrainingSlotsConfig
from atelier.errors import InvalidArgumentError
from tests.harness.adapters import random_updates

_RANK, _ALPHA = 4, 2
_SUFFIXES = {"lora_A": "lora_A.default.weight", "lora_B": "lora_B.default.weight"}
_SUFFIXES["magnitude"] = "lora_magnitude_vector.default.weight"
Forward = Callable[[Any, slice], torch.Tensor]


@pytest.fixture(scope="module")
def forwards(base: StableDiffusion) -> dict[str, Forward]:
    """By component: rows of one batch through a model."""
    latents = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    timesteps, text = torch.tensor([900, 200]), base.encode_prompts(["a fox", "a red car"]).text
    ids = torch.randint(0, 3351, (2, 77), generator=torch.Generator().manual_seed(0))
    return {
        "unet": lambda model, rows: model(latents[rows], timesteps[rows], text[rows]).sample,
        "text_encoder": lambda model, rows: model(ids[rows]).last_hidden_state,
    }


def with_peft(
    base: StableDiffusion, component: str, layers: list[str], factors: dict[str, LowRank], scale: float, **options: Any
) -> Any:
    """A fresh model with PEFT's adapter, whose numbers are `factors` before scaling."""
    model_class: Any = UNet2DConditionModel if component == "unet" else CLIPTextModel
    model = model_class.from_pretrained(base.path / component, dtype=torch.float32).eval().requires_grad_(False)
    model.add_adapter(LoraConfig(r=_RANK, lora_alpha=_ALPHA, target_modules=layers, **options))
    own = dict(model.named_parameters())
    for name, update in factors.items():
        for part, tensor in (("lora_A", update.a), ("lora_B", update.b / scale), ("magnitude", update.magnitude)):
            if tensor is not None:
                parameter = own[f"{name}.{_SUFFIXES[part]}"]
                parameter.data.copy_(tensor.reshape(parameter.shape))
                parameter.requires_grad_(True)
    return model


def filled(model: nn.Module, config: TrainingSlotsConfig, jobs: list[dict[str, LowRank]]) -> TrainingSlots:
    """Slots whose jobs act as these updates."""
    bank = TrainingSlots(model, config, seeds=range(len(jobs)))
    for job, factors in enumerate(jobs):
        for name, update in factors.items():
            parts = {"lora_A": update.a, "lora_B": update.b / config.scale, "magnitude": update.magnitude}
            for part, tensor in parts.items():
                if tensor is not None:
                    bank.parameters(job)[f"{name}.{part}"].data.copy_(tensor)
    return bank


@pytest.mark.parametrize(
    ("component", "layers", "options"),
    [
        ("unet", "all", {"use_dora": True}),
        ("unet", "linear", {"use_rslora": True}),
        ("text_encoder", "linear", {}),
        ("text_encoder", "attention", {"use_dora": True, "use_rslora": True}),
    ],
)
def test_outputs_and_gradients_of_packed_jobs_equal_peft_s(
    base: StableDiffusion,
    forwards: dict[str, Forward],
    component: str,
    layers: LayerSelection,
    options: dict[str, bool],
) -> None:
    model, forward, dora = base.components()[component], forwards[component], options.get("use_dora", False)
    # rsLoRA is only another scale.
    scale = _ALPHA / (sqrt(_RANK) if options.get("use_rslora") else _RANK)
    jobs = [random_updates(model, seed=seed, layers=layers, dora=dora) for seed in (1, 2)]
    bank = filled(model, TrainingSlotsConfig(layers=layers, rank=_RANK, scale=scale, use_dora=dora), jobs)
    bare = forward(model, slice(0, 2))
    with bank.bind(bank.gather()):
        ours = forward(model, slice(0, 2))
        ours.square().sum().backward()
    bank.close()
    for job, factors in enumerate(jobs):
        peer = with_peft(base, component, list(factors), factors, scale, **options)
        theirs = forward(peer, slice(job, job + 1))
        theirs.square().sum().backward()
        torch.testing.assert_close(ours[job : job + 1], theirs, rtol=1e-4, atol=1e-4)
        assert (ours[job] - bare[job]).abs().max() > 0.01
        gradients = {name: p.grad for name, p in peer.named_parameters() if p.grad is not None}
        assert len(gradients) == len(bank.parameters(job)) == len(factors) * (3 if dora else 2)
        for name, parameter in bank.parameters(job).items():
            layer, _, part = name.rpartition(".")
            wanted, found = gradients[f"{layer}.{_SUFFIXES[part]}"], parameter.grad
            assert found is not None
            torch.testing.assert_close(
                found, wanted.view(found.shape), rtol=1e-3, atol=1e-4 * wanted.abs().max().item()
            )


def test_dora_begins_at_the_bare_model_and_exports_its_magnitudes(
    base: StableDiffusion, forwards: dict[str, Forward]
) -> None:
    bank = TrainingSlots(base.unet, TrainingSlotsConfig(layers="all", rank=_RANK, scale=0.5, use_dora=True), seeds=[0])
    with torch.no_grad(), bank.bind(bank.gather()):
        bound = forwards["unet"](base.unet, slice(0, 2))
    bank.close()
    torch.testing.assert_close(bound, forwards["unet"](base.unet, slice(0, 2)), rtol=0, atol=1e-5)
    factors = bank.factors(0)
    for name, layer in select_layers(base.unet, "all").items():
        torch.testing.assert_close(factors[name].magnitude, layer.weight.flatten(1).norm(dim=1))


def test_dora_keeps_a_half_precision_model_s_number_type(base: StableDiffusion) -> None:
    half = copy.deepcopy(base.text_encoder).bfloat16()
    without_bias, dtype = nn.Sequential(), torch.bfloat16
    without_bias.add_module("to_q", nn.Linear(8, 8, bias=False, dtype=dtype))
    for model, x in ((half, torch.zeros(1, 77, dtype=torch.long)), (without_bias, torch.ones(1, 3, 8, dtype=dtype))):
        bank = TrainingSlots(
            model, TrainingSlotsConfig(layers="attention", rank=2, scale=1.0, use_dora=True), seeds=[0]
        )
        with bank.bind(bank.gather()):
            output = model(x)
        bank.close()
        assert getattr(output, "last_hidden_state", output).dtype == dtype


def test_inference_slots_refuse_dora(base: StableDiffusion) -> None:
    bank = InferenceSlots(base.unet, InferenceSlotsConfig(num_slots=2, max_rank=_RANK, layers="attention"))
    factors = random_updates(base.unet, seed=0, layers="attention", dora=True)
    with pytest.raises(InvalidArgumentError, match="DoRA") as caught:
        bank.load(1, factors)
    bank.close()
    assert caught.value.reason == "ADAPTER_KIND_NOT_SUPPORTED"


def test_dropout_acts_in_training_alone_and_follows_the_global_seed(
    base: StableDiffusion, forwards: dict[str, Forward]
) -> None:
    factors = [random_updates(base.unet, seed=1)]

    def run(seed: int, *, dropout: float, training: bool = True) -> torch.Tensor:
        torch.manual_seed(seed)
        config = TrainingSlotsConfig(layers="all", rank=_RANK, scale=1.0, dropout=dropout)
        bank = filled(base.unet, config, factors)
        with torch.no_grad(), bank.bind(bank.gather(training=training)):
            output = forwards["unet"](base.unet, slice(0, 2))
        bank.close()
        return output

    without = run(0, dropout=0.0)
    assert torch.equal(run(1, dropout=0.5, training=False), without)
    assert torch.equal(run(1, dropout=0.5), run(1, dropout=0.5))
    assert not torch.allclose(run(1, dropout=0.5), run(2, dropout=0.5), atol=1e-3)
    assert not torch.allclose(run(1, dropout=0.5), without, atol=1e-3)
