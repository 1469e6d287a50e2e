"""Optimizers: what each learns, that a resumed one goes on bit for bit, and the schedule."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn
from torch.nn import functional

from atelier.errors import FailedPreconditionError
from services.trainer.methods import resolve_config
from services.trainer.training.config import TrainingConfig
from services.trainer.training.optimizers import (
    ParameterGroup,
    begin_phase,
    learning_rate_factor,
    load_optimizer,
    make_optimizer,
    save_optimizer,
)

_BASE = Path(__file__).parents[2] / "models" / "emoji-sd"
_OPTIMIZERS = ("adamw", "adafactor", "prodigy")


class Training:
    """A convolution in channels-last layout with a zero-initialised head, which rests in every third step."""

    def __init__(self, optimizer: str) -> None:
        torch.manual_seed(0)
        model: Any = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(64, 2))
        self.model = model.to(memory_format=torch.channels_last)
        nn.init.zeros_(self.model[2].weight)
        self.config = config(optimizer=optimizer, max_train_steps=20, lr_warmup_steps=3)
        rate = self.config.learning_rate
        self.groups = [
            ParameterGroup(
                name="unet", parameters=dict(self.model[0].named_parameters()), learning_rate=rate, weight_decay=0.01
            ),
            ParameterGroup(
                name="text.encoder",
                parameters=dict(self.model[2].named_parameters()),
                learning_rate=rate,
                weight_decay=0.0,
            ),
        ]
        self.optimizer = make_optimizer(self.config, self.groups)

    def run(self, first: int, last: int) -> list[float]:
        losses = []
        for step in range(first, last):
            generator = torch.Generator().manual_seed(step)
            images = torch.randn(8, 3, 6, 6, generator=generator)
            target = 10 * torch.stack([images.mean(dim=(1, 2, 3)), images[:, 0].mean(dim=(1, 2))], dim=1)
            loss = functional.mse_loss(self.model(images), target)
            loss.backward()
            if step % 3 == 2:
                self.model[2].zero_grad(set_to_none=True)
            for group, options in zip(self.groups, self.optimizer.param_groups, strict=True):
                options["lr"] = group.learning_rate * learning_rate_factor(self.config, step)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            losses.append(loss.item())
        return losses

    def weights(self) -> Mapping[str, torch.Tensor]:
        return {name: parameter.detach().clone() for name, parameter in self.model.named_parameters()}


def config(**overrides: object) -> TrainingConfig:
    rate = {} if overrides.get("optimizer") == "prodigy" else {"learning_rate": 1e-2}
    return resolve_config("dreambooth", {**rate, **overrides}, base_path=_BASE)


@pytest.mark.parametrize("name", _OPTIMIZERS)
@pytest.mark.parametrize("stop", [1, 2, 9])
def test_a_resumed_optimizer_goes_on_bit_for_bit(name: str, stop: int) -> None:
    straight = Training(name)
    straight.run(0, 20)

    stopped = Training(name)
    stopped.run(0, stop)
    tensors, scalars = save_optimizer(stopped.optimizer, stopped.groups)
    contents = safetensors.torch.save({key: tensor.contiguous() for key, tensor in tensors.items()})
    numbers = json.dumps(scalars)

    resumed = Training(name)
    resumed.model.load_state_dict(stopped.weights())
    load_optimizer(resumed.optimizer, resumed.groups, safetensors.torch.load(contents), json.loads(numbers))
    resumed.run(stop, 20)
    for key, weight in straight.weights().items():
        assert torch.equal(resumed.weights()[key], weight), key
    assert (
        save_optimizer(resumed.optimizer, resumed.groups)[1] == save_optimizer(straight.optimizer, straight.groups)[1]
    )


@pytest.mark.parametrize("name", _OPTIMIZERS)
def test_tensors_are_named_by_group_and_parameter_and_laid_out_as_they(name: str) -> None:
    training = Training(name)
    training.run(0, 2)
    tensors, _ = save_optimizer(training.optimizer, training.groups)
    assert {key.rpartition(".")[0] for key in tensors} == {
        "optimizer.unet.weight",
        "optimizer.unet.bias",
        "optimizer.text.encoder.weight",
        "optimizer.text.encoder.bias",
    }
    other = Training(name)
    contiguous = {key: tensor.contiguous() for key, tensor in tensors.items()}
    load_optimizer(other.optimizer, other.groups, contiguous, save_optimizer(training.optimizer, training.groups)[1])
    weight = other.groups[0].parameters["weight"]
    assert weight.stride() != weight.contiguous().stride()
    for tensor in other.optimizer.state[weight].values():
        if torch.is_tensor(tensor) and tensor.shape == weight.shape:
            assert tensor.stride() == weight.stride()


@pytest.mark.parametrize("name", _OPTIMIZERS)
def test_it_learns(name: str) -> None:
    training = Training(name)
    training.config = replace(training.config, max_train_steps=400, lr_scheduler="constant")
    losses = training.run(0, 400)
    assert sum(losses[-20:]) < 0.7 * sum(losses[:20])


@pytest.mark.parametrize("name", _OPTIMIZERS)
def test_a_group_without_gradients_rests(name: str) -> None:
    training = Training(name)
    for step in range(6):
        resting = step // 3
        training.model(torch.randn(2, 3, 6, 6)).square().sum().backward()
        training.model[2 * resting].zero_grad(set_to_none=True)
        before = training.weights()
        training.optimizer.step()
        training.optimizer.zero_grad()
        still, moving = (("0.weight", "2.bias"), ("2.bias", "0.weight"))[resting]
        assert torch.equal(training.weights()[still], before[still])
        assert not torch.equal(training.weights()[moving], before[moving])


def test_eight_bit_moments_need_a_gpu() -> None:
    with pytest.raises(FailedPreconditionError, match=r"config\.optimizer: adamw-8bit needs a GPU") as refusal:
        Training("adamw-8bit")
    assert refusal.value.reason == "OPTIMIZER_NOT_AVAILABLE"


def test_the_rate_warms_up_and_then_follows_its_schedule() -> None:
    def factors(scheduler: str) -> list[float]:
        chosen = config(lr_scheduler=scheduler, lr_warmup_steps=2, max_train_steps=6)
        return [learning_rate_factor(chosen, step) for step in range(6)]

    assert factors("constant") == [0.5, 1, 1, 1, 1, 1]
    assert factors("linear") == [0.5, 1, 1, 0.75, 0.5, 0.25]
    assert factors("cosine") == pytest.approx([0.5, 1, 1, 0.8535533905932737, 0.5, 0.14644660940672627])
    assert learning_rate_factor(config(lr_warmup_steps=0, lr_scheduler="linear"), 0) == 1


def test_a_new_phase_begins_with_prodigy_s_first_estimate() -> None:
    training = Training("prodigy")
    first = save_optimizer(training.optimizer, training.groups)[1]["groups"]
    training.run(0, 20)
    last = save_optimizer(training.optimizer, training.groups)[1]["groups"]
    begin_phase(training.optimizer)
    begun = save_optimizer(training.optimizer, training.groups)[1]["groups"]
    for name, numbers in first.items():
        for key in ("k", "d", "d_max", "d_numerator"):
            assert last[name][key] != numbers[key]
            assert begun[name][key] == numbers[key]


def test_a_new_phase_is_nothing_to_an_optimizer_that_keeps_all_by_parameter() -> None:
    training = Training("adamw")
    training.run(0, 3)
    tensors, numbers = save_optimizer(training.optimizer, training.groups)
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    begin_phase(training.optimizer)
    tensors, after = save_optimizer(training.optimizer, training.groups)
    assert after == numbers
    assert tensors.keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in tensors.items())
