"""How a job's steps are taken: accumulation, recomputation, rates, phases, averages and dropout."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from atelier.diffusion.base import Base
from services.trainer.training.loss import join
from services.trainer.training.trainables import FullWeights
from tests.harness.training import checkpoints, make_job, parameters_in, training


def test_accumulated_batches_are_one_large_batch(base: Base) -> None:
    """The same examples and noise in two passes of one row and in one of two; sums in another order apart."""
    job = make_job("lora", base, train_batch_size=1, gradient_accumulation_steps=2, max_grad_norm=1000.0)
    with training(job, base) as trained:
        student = trained.loop.student
        trained.take_steps(1)  # so that B is not zero, and A has a gradient too
        learning = student.begin_step(1)
        parts = [rows for index in (2, 3) for rows in trained.lessons.batch(index)]
        (rows,) = join([replace(part, weights=part.weights / 2) for part in parts])
        with student.acting(training=True):
            predictions = student.base.predict(rows.latents, rows.timesteps, student.encode(rows.prompts, learning))
            rows.loss(predictions).backward()
        expected = {name: p.grad.clone() for name, p in student.parameters().items() if p.grad is not None}
        assert expected.keys() == student.parameters().keys()
        for parameter in student.parameters().values():
            parameter.grad = None
        for index in (2, 3):
            trained.loop._backward(index, learning)
        for name, parameter in student.parameters().items():
            torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("method", ["dreambooth", "lora"])
def test_recomputed_layers_learn_the_same(method: str, base: Base) -> None:
    """With dropout, too: it is drawn the same when the layers run again."""
    config: dict[str, Any] = {"max_train_steps": 2, "validation_steps": 0}
    config |= {"lora_dropout": 0.3, "use_dora": True} if method == "lora" else {"train_text_encoder": True}
    plain = parameters_in(checkpoints(make_job(method, base, **config), base)[2])
    job = make_job(method, base, gradient_checkpointing=True, **config)
    recomputed = parameters_in(checkpoints(job, base)[2])
    for name, parameter in plain.items():
        torch.testing.assert_close(recomputed[name], parameter, rtol=0, atol=1e-6)


def test_dropout_is_drawn_from_the_seed_and_leaves_the_process_s_own_draws_alone(base: Base) -> None:
    results = []
    for torch_seed, seed in ((1, 0), (2, 0), (1, 3)):
        torch.manual_seed(torch_seed)
        state = torch.get_rng_state()
        with training(make_job("lora", base, lora_dropout=0.5, seed=seed), base) as trained:
            trained.take_steps(1)
            results.append(torch.cat([p.flatten() for p in trained.parameters().values()]))
        assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_each_phase_of_pivotal_tuning_has_the_whole_schedule(base: Base) -> None:
    config = {"max_train_steps": 12, "lr_warmup_steps": 2, "lr_scheduler": "linear", "learning_rate": 1e-3}
    with training(make_job("pivotal", base, embedding_learning_rate=1e-2, **config), base) as trained:
        loop = trained.loop
        words, updates = loop.student.trainables
        assert (words.steps, updates.steps) == (range(6), range(6, 12))
        rates: list[tuple[float, float]] = []
        for loop.step in range(12):
            rates.append((loop.learning_rate(words), loop.learning_rate(updates)))
    ramp = torch.tensor([0.5, 1, 1, 0.75, 0.5, 0.25], dtype=torch.float64)
    zero = torch.zeros(6, dtype=torch.float64)
    found = torch.tensor(rates, dtype=torch.float64)
    torch.testing.assert_close(found[:, 0], torch.cat([ramp * 1e-2, zero]))
    torch.testing.assert_close(found[:, 1], torch.cat([zero, ramp * 1e-3]))


def test_words_stay_in_the_vocabulary_s_range_and_rest_after_the_pivot(base: Base) -> None:
    job = make_job("pivotal", base, max_train_steps=6, lr_warmup_steps=0, embedding_learning_rate=1.0)
    norms = base.towers[0].model.get_input_embeddings().weight.norm(dim=1)
    low, high = torch.quantile(norms, torch.tensor([0.01, 0.99])).tolist()
    with training(job, base) as trained:
        tables = []
        for step in range(6):
            before = trained.parameters()
            trained.take_steps(1)
            after = trained.parameters()
            moved = {name for name in after if not torch.equal(after[name], before[name])}
            assert ("words.clip_l" in moved) == (step < 3)
            assert any(name.startswith("unet.") for name in moved) == (step >= 3)
            tables.append(after["words.clip_l"].norm(dim=1))
        assert all(low * 0.9999 <= norm <= high * 1.0001 for table in tables for norm in table.tolist())


def test_words_begin_with_the_initializer_word_or_with_the_vocabulary_s_spread(base: Base) -> None:
    def first(**config: Any) -> torch.Tensor:
        with training(make_job("textual-inversion", base, **config), base) as trained:
            return trained.parameters()["words.clip_l"]

    tower = base.towers[0]
    vocabulary = tower.model.get_input_embeddings().weight
    ids = tower.tokenizer("fox", add_special_tokens=False).input_ids
    begun = first(initializer_word="fox", num_vectors=3)
    assert torch.equal(begun, vocabulary[[ids[i % len(ids)] for i in range(3)]])
    noise = first(num_vectors=16)
    assert noise.std().item() == pytest.approx(vocabulary.std().item(), rel=0.1)
    assert torch.equal(first(initializer_word=" ", num_vectors=16), noise)
    assert not torch.equal(first(num_vectors=16, seed=1), noise)


def test_the_average_follows_the_weights_and_is_what_draws(base: Base) -> None:
    """A decay of nearly 1 does not leave a short run's average at the base model: it rises slowly."""
    with training(make_job("dreambooth", base, ema_decay=0.999, max_train_steps=3, lr_warmup_steps=0), base) as trained:
        (unet,) = trained.loop.student.trainables
        assert isinstance(unet, FullWeights)
        name = "conv_out.weight"
        average = unet.parameters()[name].detach().clone()
        for decay in (1 / 10, 2 / 11, 3 / 12):
            trained.take_steps(1)
            weights = unet.parameters()[name].detach().clone()
            average = decay * average + (1 - decay) * weights
            torch.testing.assert_close(unet.buffers()[name], average, rtol=0, atol=1e-7)
        kept = unet.buffers()[name].clone()
        with unet.acting(training=False):
            assert torch.equal(unet.model.get_parameter(name), kept)
        with unet.acting(training=True):
            assert torch.equal(unet.model.get_parameter(name), weights)


def test_the_text_encoder_learns_at_its_own_rate(base: Base) -> None:
    job = make_job("lora", base, train_text_encoder=True, text_encoder_learning_rate=1e-5, lr_warmup_steps=0)
    with training(job, base) as trained:
        before = trained.parameters()
        trained.take_steps(1)
        after = trained.parameters()
    steps = {name: (after[name] - before[name]).abs().max().item() for name in before if name.endswith("lora_B")}
    assert {name.partition(".")[0] for name in steps} == {"unet", "text_encoder"}
    for name, moved in steps.items():
        assert moved == pytest.approx(1e-5 if name.startswith("text_encoder") else 1e-3, rel=0.01)


@pytest.mark.parametrize("method", ["lora", "textual-inversion"])
def test_a_loss_that_has_settled_stops_the_job(method: str, base: Base) -> None:
    """The rule's own tests say when; here it hears of the loss, and what it says ends the run."""
    with training(make_job(method, base, max_train_steps=60, early_stopping=True), base) as trained:
        early_stop = trained.loop.early_stop
        assert early_stop is not None
        trained.loop.step = 49
        early_stop.restore([9.0, 1.0, 1.0, 1.0, 1.0, 1.0])
        steps = [event.step for event in trained.loop.run()]
        assert steps == [50]
        assert trained.loop.stopped_early
        assert len(early_stop.state()) == 7
