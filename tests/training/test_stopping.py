"""However a job ends, it ends at once, says why, and leaves the shared base model bare."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch

from atelier.diffusion.base import Base
from atelier.errors import CancelledError, FailedPreconditionError, InvalidArgumentError
from services.trainer.methods import load_train
from services.trainer.methods.base import CheckpointReady, Evaluating, Event, Preparing, StepDone, TrainingJob
from services.trainer.methods.dreambooth import METHOD as DREAMBOOTH
from services.trainer.methods.pivotal import METHOD as PIVOTAL
from services.trainer.training.evaluation import Scorers
from services.trainer.training.student import Student
from services.trainer.training.trainables import LowRankUpdates, Trainable
from tests.harness.training import ALL_METHODS, make_job, run_job, traces, training


def stopped_at(job: TrainingJob, base: Base, scorers: Scorers | None, when: Callable[[Event], bool]) -> list[Event]:
    """The events of a job that is asked to stop after the first event that `when` is true of."""
    seen: list[Event] = []
    running = load_train(job.method)(job, base, scorers, should_stop=lambda: when(seen[-1]))
    with pytest.raises(CancelledError):
        seen.extend(running)
    assert not when(seen[-2])
    return seen


@pytest.mark.parametrize("method", ALL_METHODS)
def test_a_stop_is_heard_within_a_step(method: str, base: Base) -> None:
    job = make_job(method, base, gradient_checkpointing=True, seed=80)
    seen = stopped_at(job, base, None, lambda event: isinstance(event, StepDone) and event.step == 2)
    assert isinstance(seen[-1], StepDone)
    assert not traces(base)


@pytest.mark.parametrize(
    "before",
    [
        lambda event: isinstance(event, Preparing) and "training images" in event.what,
        lambda event: isinstance(event, Preparing) and "rehearsal" in event.what,
        lambda event: isinstance(event, StepDone) and event.step == 3,
        lambda event: isinstance(event, Evaluating),
    ],
    ids=["class images", "rehearsal", "previews", "evaluation"],
)
def test_a_stop_is_heard_while_images_are_drawn(base: Base, scorers: Scorers, before: Callable[[Event], bool]) -> None:
    seen: list[Event] = []
    asked = 0

    def says_so_at_the_second_time() -> bool:
        nonlocal asked
        asked += before(seen[-1])
        return asked == 2

    job = make_job("dreambooth-lora", base, seed=79)
    running = load_train(job.method)(job, base, scorers, should_stop=says_so_at_the_second_time)
    with pytest.raises(CancelledError):
        seen.extend(running)
    assert before(seen[-1])
    assert asked == 2
    assert not traces(base)


@pytest.mark.parametrize("kind", [StepDone, CheckpointReady, Evaluating])
def test_a_run_that_nobody_listens_to_any_more_leaves_the_base_bare(base: Base, kind: type[Event]) -> None:
    running = load_train("pivotal")(
        make_job("pivotal", base, gradient_checkpointing=True, validation_steps=0), base, None
    )
    for event in running:
        if isinstance(event, kind):
            break
    running.close()  # type: ignore[attr-defined]
    assert not traces(base)


def test_words_that_diverge_before_the_pivot_are_told_by_their_own_rate(base: Base) -> None:
    with training(make_job("pivotal", base), base) as trained:
        trained.instances[:] = [replace(each, latents=each.latents * torch.inf) for each in trained.instances]
        with pytest.raises(FailedPreconditionError, match=r"at step 1: .* try a lower embedding_learning_rate$"):
            trained.loop.take_step()


def test_a_rate_that_is_far_too_high_is_told_as_such(base: Base) -> None:
    job = make_job("lora", base, learning_rate=10.0, gradient_checkpointing=True, lr_warmup_steps=0)
    with pytest.raises(FailedPreconditionError, match=r"diverged at step \d: .* lower learning_rate") as failure:
        run_job(job, base)
    assert failure.value.reason == "TRAINING_DIVERGED"
    assert not traces(base)


@pytest.mark.parametrize("method", ALL_METHODS)
def test_a_loss_that_is_not_finite_changes_no_parameter(method: str, base: Base) -> None:
    with training(make_job(method, base), base) as trained:
        trained.take_steps(2)
        before = trained.parameters()
        trained.instances[:] = [replace(each, latents=each.latents * torch.inf) for each in trained.instances]
        rate = "embedding_learning_rate" if method == "textual-inversion" else "learning_rate"
        with pytest.raises(FailedPreconditionError, match=f"diverged at step 3: .* try a lower {rate}$") as failure:
            trained.loop.take_step()
        assert (failure.value.reason, failure.value.metadata["step"]) == ("TRAINING_DIVERGED", "3")
        after = trained.parameters()
        assert all(torch.equal(before[name], after[name]) for name in before)
        assert trained.loop.step == 2
    assert not traces(base)


def test_an_image_that_cannot_be_decoded_is_named(base: Base) -> None:
    job = make_job("lora", base)
    concept = job.concepts[0]
    broken = replace(concept, images=(replace(concept.images[0], contents=b"no image"),))
    with pytest.raises(InvalidArgumentError, match=r"job\.dataset: '00\.png' is not a readable image"):
        run_job(replace(job, concepts=(broken,)), base)


def test_a_student_that_cannot_be_made_takes_its_hooks_off(base: Base) -> None:
    """As when the memory is full after the denoiser's updates and before the text encoder's."""
    config = make_job("lora", base).config

    def trainables() -> Iterator[Trainable]:
        yield LowRankUpdates("unet", base.denoiser, config, learning_rate=1e-3, steps=range(4))
        raise MemoryError

    with pytest.raises(MemoryError):
        Student(base, trainables())
    assert not traces(base)


def test_a_closed_student_s_models_are_freed_at_once(base: Base) -> None:
    """By themselves, and not at the garbage collector's next round: a GPU's memory cannot wait for it."""
    with without_garbage_collection():
        student = DREAMBOOTH.make_student(make_job("dreambooth", base, train_text_encoder=True), base)
        student.encode(["a photo of a sks fox"], learning=())
        student.encode(["a photo of a sks fox"], learning=student.begin_step(0))
        models = [weakref.ref(model) for model in student.models().values()]
        assert len(models) == 2
        student.close()
        del student
        assert [model() for model in models] == [None, None]


@contextmanager
def without_garbage_collection() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def test_a_token_that_the_base_has_already_is_refused(base: Base) -> None:
    tokenizer = copy.deepcopy(base.towers[0].tokenizer)
    tokenizer.add_tokens(["<s1>"])
    taken = replace(base, towers=(replace(base.towers[0], tokenizer=tokenizer),))
    with pytest.raises(InvalidArgumentError, match="has one of the tokens"):
        PIVOTAL.make_student(make_job("pivotal", base), taken)
    assert not traces(base)
