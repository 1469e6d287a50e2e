"""The slot bank: what a bound adapter does, and what nothing may do."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from atelier.diffusion.families.stable_diffusion import StableDiffusion
from atelier.diffusion.lowrank import LowRank, weight_shapes
from atelier.diffusion.slots import Group, InferenceSlots, InferenceSlotsConfig
from atelier.diffusion.training_slots import TrainingSlots, TrainingSlotsConfig
from atelier.errors import InvalidArgumentError

# float32 products of other shapes sum in another order.
_FP32_TOLERANCE = 1e-5
_FIRST: Group = [(1, 1.0)]
_SECOND: Group = [(2, 0.7)]
_BOTH: Group = [(1, 1.0), (2, -0.5)]
_CONFIG = TrainingSlotsConfig(layers="all", rank=4, scale=0.5)


def make_factors(base: StableDiffusion, *, seed: int, rank: int, layers: str = "all") -> dict[str, LowRank]:
    generator = torch.Generator().manual_seed(seed)
    shapes = weight_shapes(base.unet, "attention" if layers == "attention" else "all")
    return {
        name: LowRank(
            a=torch.randn(rank, *inner, generator=generator) / torch.tensor(inner).prod().sqrt(),
            b=torch.randn(out, rank, generator=generator) * 0.02,
        )
        for name, (out, *inner) in shapes.items()
    }


@pytest.fixture
def slots(base: StableDiffusion) -> Iterator[InferenceSlots]:
    bank = InferenceSlots(base.unet, InferenceSlotsConfig(num_slots=4, max_rank=16))
    bank.load(1, make_factors(base, seed=1, rank=16))
    bank.load(2, make_factors(base, seed=2, rank=4, layers="attention"))
    yield bank
    bank.close()


@pytest.fixture(scope="module")
def inputs(base: StableDiffusion) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    latents = torch.randn(4, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    text = base.encode_prompts(["a fox", "", "a cat face", "a red car"]).text
    return latents, torch.tensor([999, 500, 250, 1]), text


def forward(base: StableDiffusion, inputs: tuple[torch.Tensor, ...]) -> torch.Tensor:
    with torch.no_grad():
        return base.unet(*inputs).sample


def forward_bound(
    slots: InferenceSlots, base: StableDiffusion, inputs: tuple[torch.Tensor, ...], *groups: Group
) -> torch.Tensor:
    with slots.bind(slots.gather(groups)):
        return forward(base, inputs)


def test_rows_of_a_mixed_batch_equal_each_adapter_alone(
    base: StableDiffusion, slots: InferenceSlots, inputs: tuple
) -> None:
    groups = [_FIRST, _SECOND, _BOTH, []]
    mixed = forward_bound(slots, base, inputs, *groups)
    for row, group in enumerate(groups):
        alone = forward_bound(slots, base, tuple(part[row : row + 1] for part in inputs), group)
        torch.testing.assert_close(mixed[row : row + 1], alone, rtol=0, atol=_FP32_TOLERANCE)


def test_groups_of_several_rows_take_their_own_adapter(
    base: StableDiffusion, slots: InferenceSlots, inputs: tuple
) -> None:
    mixed = forward_bound(slots, base, inputs, _FIRST, _SECOND)
    torch.testing.assert_close(mixed[:2], forward_bound(slots, base, inputs, _FIRST)[:2], rtol=0, atol=_FP32_TOLERANCE)
    torch.testing.assert_close(mixed[2:], forward_bound(slots, base, inputs, _SECOND)[2:], rtol=0, atol=_FP32_TOLERANCE)


def test_without_adapters_the_output_is_bit_equal_to_the_bare_model(
    base: StableDiffusion, slots: InferenceSlots, inputs: tuple
) -> None:
    alike_to_none: list[list[Group]] = [[[]], [[(0, 1.0)]], [[(3, 1.0)]], [[(1, 0.0)], []]]
    for groups in alike_to_none:
        bound = forward_bound(slots, base, inputs, *groups)
        unbound = forward(base, inputs)
        slots.close()
        assert torch.equal(bound, forward(base, inputs))
        assert torch.equal(unbound, bound)


def test_adapters_act(base: StableDiffusion, slots: InferenceSlots, inputs: tuple) -> None:
    bare = forward(base, inputs)
    assert (forward_bound(slots, base, inputs, _FIRST) - bare).abs().max() > 0.01
    assert (forward_bound(slots, base, inputs, _SECOND) - bare).abs().max() > 0.001


def test_loading_another_slot_leaves_outputs_bit_equal(
    base: StableDiffusion, slots: InferenceSlots, inputs: tuple
) -> None:
    before = forward_bound(slots, base, inputs, _FIRST, _SECOND)
    slots.load(3, make_factors(base, seed=3, rank=8))
    assert torch.equal(forward_bound(slots, base, inputs, _FIRST, _SECOND), before)


def test_a_lower_rank_in_a_used_slot_leaves_nothing_of_the_old_adapter(
    base: StableDiffusion, slots: InferenceSlots, inputs: tuple
) -> None:
    wanted = forward_bound(slots, base, inputs, [(2, 1.0)], _FIRST)
    slots.load(3, make_factors(base, seed=9, rank=16))
    slots.load(3, make_factors(base, seed=2, rank=4, layers="attention"))
    torch.testing.assert_close(forward_bound(slots, base, inputs, [(3, 1.0)], _FIRST), wanted, rtol=0, atol=0)


def test_a_binding_keeps_what_its_slot_held(base: StableDiffusion, slots: InferenceSlots, inputs: tuple) -> None:
    wanted = forward_bound(slots, base, inputs, _FIRST)
    binding = slots.gather([_FIRST])
    slots.clear(1)
    with slots.bind(binding):
        assert torch.equal(forward(base, inputs), wanted)


def test_an_exception_leaves_nothing_bound(base: StableDiffusion, slots: InferenceSlots, inputs: tuple) -> None:
    bare = forward(base, inputs)
    with pytest.raises(RuntimeError), slots.bind(slots.gather([_FIRST])):
        base.unet(inputs[0], inputs[1], inputs[2][:, :, :7])
    assert torch.equal(forward(base, inputs), bare)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda update: LowRank(a=update.a * torch.inf, b=update.b), r"mid_block\.\S+lora_A has values that are NaN"),
        (lambda update: LowRank(a=update.a, b=update.b * torch.nan), r"mid_block\.\S+lora_B has values that are NaN"),
        (lambda update: LowRank(a=update.a[:, 1:], b=update.b), r"mid_block\.\S+lora_A has shape \[16, 191\]"),
        (lambda update: LowRank(a=update.a, b=update.b[1:]), r"mid_block\.\S+lora_B has shape \[191, 16\]"),
        (lambda update: LowRank(a=update.a.repeat(2, 1), b=update.b.repeat(1, 2)), r"rank 32; allowed are 1 to 16"),
    ],
)
def test_a_bad_adapter_is_refused_by_tensor_and_its_slot_stays_empty(
    base: StableDiffusion, slots: InferenceSlots, inputs: tuple, change: object, message: str
) -> None:
    factors = make_factors(base, seed=1, rank=16)
    name = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    factors[name] = change(factors[name])  # type: ignore[operator]
    with pytest.raises(InvalidArgumentError, match=message):
        slots.load(1, factors)
    assert torch.equal(forward_bound(slots, base, inputs, _FIRST), forward(base, inputs))


def test_unknown_layers_are_refused_by_name(base: StableDiffusion, slots: InferenceSlots) -> None:
    factors = make_factors(base, seed=1, rank=4)
    factors["mid_block.attentions.7.proj_in"] = factors.pop("mid_block.attentions.0.proj_in")
    with pytest.raises(InvalidArgumentError, match=r"1 of its 128 layers .* mid_block\.attentions\.7\.proj_in"):
        slots.load(1, factors)


def test_gradients_of_packed_jobs_equal_those_of_each_job_alone(base: StableDiffusion, inputs: tuple) -> None:
    def gradients(seeds: list[int], rows: slice) -> list[dict[str, torch.Tensor]]:
        bank = TrainingSlots(base.unet, _CONFIG, seeds=seeds)
        for job, seed in enumerate(seeds):  # with b at zero, a would have no gradient
            factors = make_factors(base, seed=seed, rank=4)
            for name, update in factors.items():
                bank.parameters(job)[f"{name}.lora_B"].data.copy_(update.b)
        latents, timesteps, text = (part[rows] for part in inputs)
        with bank.bind(bank.gather()):
            base.unet(latents, timesteps, text).sample.square().sum().backward()
        bank.close()
        return [
            {name: p.grad for name, p in bank.parameters(job).items() if p.grad is not None}
            for job in range(len(seeds))
        ]

    packed = gradients([5, 6], slice(0, 4))
    for job, (seed, rows) in enumerate([(5, slice(0, 2)), (6, slice(2, 4))]):
        (alone,) = gradients([seed], rows)
        assert len(alone) == len(packed[job]) == 2 * 128
        for name, gradient in alone.items():
            torch.testing.assert_close(packed[job][name], gradient, rtol=1e-3, atol=1e-4 * gradient.abs().max().item())


def test_training_begins_at_the_bare_model_and_depends_on_the_seed_only(base: StableDiffusion, inputs: tuple) -> None:
    bare = forward(base, inputs)
    first, again, other = (
        TrainingSlots(base.unet, replace(_CONFIG, layers="attention"), seeds=[seed]) for seed in (7, 7, 8)
    )
    with first.bind(first.gather()):
        torch.testing.assert_close(forward(base, inputs), bare, rtol=0, atol=0)
    name = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q.lora_A"
    assert torch.equal(first.parameters(0)[name], again.parameters(0)[name])
    assert not torch.equal(first.parameters(0)[name], other.parameters(0)[name])
    for bank in (first, again, other):
        bank.close()


def test_what_was_trained_acts_the_same_in_an_inference_slot(base: StableDiffusion, inputs: tuple) -> None:
    training = TrainingSlots(base.unet, _CONFIG, seeds=[1])
    for name, update in make_factors(base, seed=4, rank=4).items():
        training.parameters(0)[f"{name}.lora_B"].data.copy_(update.b)
    with training.bind(training.gather()):
        trained = forward(base, inputs)
    training.close()
    bank = InferenceSlots(base.unet, InferenceSlotsConfig(num_slots=2, max_rank=8))
    bank.load(1, training.factors(0))
    torch.testing.assert_close(forward_bound(bank, base, inputs, _FIRST), trained, rtol=0, atol=_FP32_TOLERANCE)
    bank.close()
